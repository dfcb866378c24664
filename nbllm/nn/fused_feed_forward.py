"""The feed-forward part on the CPU: bias, activation, derivative and bias gradient in single passes."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nbllm.nn.kernels import num_blocks, run_for, serves
from nbllm.nn.matmul import matmul, matmul_dtype


def gelu_feed_forward(
    x: Float[Tensor, "... input"],
    up: Float[Tensor, "inner input"],
    up_bias: Float[Tensor, " inner"] | None,
    down: Float[Tensor, "output inner"],
    down_bias: Float[Tensor, " output"] | None,
) -> Float[Tensor, "... output"] | None:
    """Return gelu_tanh(x up^T + up_bias) down^T + down_bias, or None where no kernel can compute it.

    Args:
        x: (..., input).
        up: (inner, input).
        up_bias: (inner,).
        down: (output, inner).
        down_bias: (output,).
    """
    elements = x.numel() // max(x.shape[-1], 1) * len(up)
    if not serves("activations", x, up, up_bias, down, down_bias, elements=elements):
        return None
    out: Tensor = _GeluFeedForward.apply(x, up, up_bias, down, down_bias)
    return out


def swiglu(x: Float[Tensor, "... twice"]) -> Float[Tensor, "... half"] | None:
    """Return silu(gate) * up of x = (gate, up) side by side, or None where no kernel can compute it.

    Source: Shazeer 2020, arXiv:2002.05202, section 2.
    """
    if not serves("activations", x, elements=x.numel()):
        return None
    out: Tensor = _SwiGLU.apply(x)
    return out


class _GeluFeedForward(torch.autograd.Function):
    """Between the two matrices, all is in the dtype of the matmuls: conversions are left out where it is another."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None
    ) -> Tensor:
        rows = _rows(x)
        dtype = matmul_dtype(x, len(rows))
        inner = matmul(rows.to(dtype), up.to(dtype).t())
        active = torch.empty_like(inner)
        added = inner.new_zeros(len(up), dtype=torch.float32)
        if up_bias is not None:
            added.copy_(up_bias)
        run_for(dtype, "activations", "gelu", num_blocks(len(inner)), inner, added, active)
        ctx.save_for_backward(x, up, inner, active, down)  # `inner` now holds the derivative
        out = matmul(active, down.to(dtype).t())
        if down_bias is not None:
            out += down_bias
        return out.to(x.dtype).view(*x.shape[:-1], len(down))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, up, slope, active, down = ctx.saved_tensors
        wants_x, wants_up, wants_up_bias, wants_down, wants_down_bias = ctx.needs_input_grad
        dtype = slope.dtype
        grad_out = _rows(grad).to(dtype)
        grad_down = matmul(grad_out.t(), active).to(down.dtype) if wants_down else None
        grad_down_bias = grad_out.sum(0).to(down.dtype) if wants_down_bias else None
        if not (wants_x or wants_up or wants_up_bias):
            return None, None, None, grad_down, grad_down_bias
        grad_inner = matmul(
            grad_out, down.to(dtype)
        )  # first by `active`, then by what the activation is given
        totals = slope.new_empty(num_blocks(len(slope)), slope.shape[1], dtype=torch.float32)
        run_for(dtype, "activations", "multiply_and_sum", len(totals), slope, grad_inner, totals)
        grad_x = matmul(grad_inner, up.to(dtype)).to(x.dtype).view(x.shape) if wants_x else None
        grad_up = matmul(grad_inner.t(), _rows(x).to(dtype)).to(up.dtype) if wants_up else None
        grad_up_bias = totals.sum(0).to(up.dtype) if wants_up_bias else None
        return grad_x, grad_up, grad_up_bias, grad_down, grad_down_bias


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
        run_for(x.dtype, "activations", "swiglu", num_blocks(x.numel() // x.shape[-1]), x, out)
        ctx.save_for_backward(x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad_x, blocks = torch.empty_like(x), num_blocks(x.numel() // x.shape[-1])
        run_for(x.dtype, "activations", "swiglu_backward", blocks, x, grad.contiguous(), grad_x)
        return grad_x


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
