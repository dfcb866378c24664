"""The linear layer, multiplied in the dtype that this machine multiplies fastest."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nbllm.nn.hooks import keep_methods
from nbllm.nn.matmul import matmul, matmul_dtype

# Below so many rows a matmul waits for the weights, and what is saved on the bias is nothing beside that.
_FEWEST_ROWS = 64


@keep_methods
class Linear(nn.Linear):
    """`nn.Linear`, with the same parameters and results; see `linear`."""

    def forward(self, x: Float[Tensor, "... input"]) -> Float[Tensor, "... output"]:
        """Return x weight^T + bias."""
        return linear(x, self.weight, self.bias)


def linear(
    x: Float[Tensor, "... input"],
    weight: Float[Tensor, "output input"],
    bias: Float[Tensor, " output"] | None = None,
) -> Float[Tensor, "... output"]:
    """Return x weight^T + bias, as `torch.nn.functional.linear` does.

    On the CPU this is quicker for many rows: the bias is added after the matmul (torch fills the result with it
    first), and bfloat16 is multiplied in the dtype that `matmul_dtype` returns.
    """
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    rows = x.numel() // max(x.shape[-1], 1)
    dtype = matmul_dtype(x, rows)
    if rows < _FEWEST_ROWS and dtype == x.dtype:
        return F.linear(x, weight, bias)
    out: Tensor = _Linear.apply(x, weight, bias, dtype)
    return out


class _Linear(torch.autograd.Function):
    """Made of differentiable operations in both directions, so it can be differentiated twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dtype = dtype
        out = matmul(x.reshape(-1, x.shape[-1]).to(dtype), weight.to(dtype).t())
        if bias is not None:
            out += bias
        return out.to(x.dtype).view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), dtype = ctx.saved_tensors, ctx.dtype
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1]).to(dtype)
        grad_x = grad_weight = grad_bias = None
        if wants_x:
            grad_x = matmul(rows, weight.to(dtype)).to(x.dtype).view(x.shape)
        if wants_weight:
            grad_weight = matmul(rows.t(), x.reshape(-1, x.shape[-1]).to(dtype)).to(weight.dtype)
        if wants_bias:
            grad_bias = rows.sum(0).to(weight.dtype)
        return grad_x, grad_weight, grad_bias, None
