"""GELU in its tanh form, computed on the CPU block by block, each while it is in the cache of a core."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from nbllm.nn.kernels.gelu import C0, C1

# Elements per thread that pass through all the steps together: a few such blocks fit a core's cache.
_BLOCK = 65536
_FEWEST = 4096


def gelu_tanh(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), as `F.gelu(x, approximate="tanh")` does.

    torch's own CPU kernel spends its time in a slow tanh, forward and backward. Here the tanh of the vector
    library is used once; it also gives the derivative, which is what the backward pass keeps.

    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.numel() < _FEWEST:
        return F.gelu(x, approximate="tanh")
    out: Tensor = _Gelu.apply(x)
    return out


def gelu_quick(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return x sigmoid(1.702 x), the coarser of GELU's two approximations.

    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.
    """
    return x * torch.sigmoid(1.702 * x)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        dtype = torch.promote_types(x.dtype, torch.float32)
        out = torch.empty_like(x)
        derivative = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        size = min(_BLOCK * torch.get_num_threads(), x.numel())
        twice_c0 = torch.tensor(2 * C0, dtype=dtype)
        workspace = torch.empty(4, size, dtype=dtype).unbind()
        slopes = [None] * -(-x.numel() // size) if derivative is None else derivative.view(-1).split(size)
        for source, target, slope in zip(
            x.view(-1).split(size), out.view(-1).split(size), slopes, strict=True
        ):
            if len(source) < size:
                workspace = tuple(part[: len(source)] for part in workspace)
            if x.dtype == dtype:
                _gelu_of_block(source, target, slope, workspace[:2], twice_c0)
                continue
            wide_out, wide_slope = workspace[2], None if slope is None else workspace[0]
            _gelu_of_block(workspace[3].copy_(source), wide_out, wide_slope, workspace[:2], twice_c0)
            target.copy_(wide_out)
            if slope is not None:
                slope.copy_(workspace[0])
        ctx.save_for_backward(derivative)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (derivative,) = ctx.saved_tensors
        grad_x: Tensor = grad * derivative
        return grad_x


def _gelu_of_block(
    x: Tensor, out: Tensor, derivative: Tensor | None, workspace: tuple[Tensor, ...], twice_c0: Tensor
) -> None:
    """Set out = x s and derivative = s + s (1 - s) (3 z - 4 c0 x), with s = (1 + tanh(z / 2)) / 2.

    z = 2 c0 (x + c1 x^3); s is its logistic function, and s (1 - s) the derivative of that. `derivative` may
    be the first of `workspace`.
    """
    z, share = workspace
    torch.addcmul(twice_c0, x, x, value=2 * C0 * C1, out=z)
    z *= x
    torch.sigmoid(z, out=share)
    torch.mul(x, share, out=out)
    if derivative is not None:
        z.add_(x, alpha=-4 * C0 / 3)
        torch.ops.aten.sigmoid_backward.grad_input(z, share, grad_input=z)
        torch.add(share, z, alpha=3, out=derivative)
