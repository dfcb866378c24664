"""A projection with its activation on the CPU: bias, activation, derivative and bias gradient in single passes."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nbllm.nn.kernels import num_blocks, run, serves


def linear_gelu(
    x: Float[Tensor, "... input"],
    weight: Float[Tensor, "output input"],
    bias: Float[Tensor, " output"] | None,
) -> Float[Tensor, "... output"] | None:
    """Return gelu_tanh(x weight^T + bias), or None where no kernel serves.

    Args:
        x: (..., input).
        weight: (output, input).
        bias: (output,).
    """
    if not serves("activations", x, weight, bias, numbers=x.numel() // max(x.shape[-1], 1) * len(weight)):
        return None
    out: Tensor = _LinearGelu.apply(x, weight, bias)
    return out


def swiglu(x: Float[Tensor, "... twice"]) -> Float[Tensor, "... half"] | None:
    """Return silu(gate) * up of x = (gate, up) side by side, or None where no kernel serves.

    Source: Shazeer 2020, arXiv:2002.05202, section 2.
    """
    if not serves("activations", x, numbers=x.numel()):
        return None
    out: Tensor = _SwiGLU.apply(x)
    return out


class _LinearGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        inner = torch.mm(x.reshape(-1, x.shape[-1]), weight.t())
        out = torch.empty_like(inner)
        added = inner.new_zeros(len(weight)) if bias is None else bias.contiguous()
        run("activations", "gelu", num_blocks(len(inner)), inner, added, out)
        ctx.save_for_backward(x, weight, inner)  # `inner` now holds the derivative
        return out.view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight, slope = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        by_inner = torch.empty_like(slope)
        totals = slope.new_empty(num_blocks(len(slope)), slope.shape[1])
        run("activations", "multiply_and_sum", len(totals), slope, grad.contiguous(), by_inner, totals)
        by_x = torch.mm(by_inner, weight).view(x.shape) if wants_x else None
        by_weight = torch.mm(by_inner.t(), x.reshape(-1, x.shape[-1])) if wants_weight else None
        return by_x, by_weight, totals.sum(0) if wants_bias else None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
        run("activations", "swiglu", num_blocks(x.numel() // x.shape[-1]), x, out)
        ctx.save_for_backward(x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        by_x = torch.empty_like(x)
        run(
            "activations", "swiglu_backward", num_blocks(x.numel() // x.shape[-1]), x, grad.contiguous(), by_x
        )
        return by_x
