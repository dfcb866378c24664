"""Normalization layers by name, and the residual addition that comes before one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nbllm.nn.hooks import is_plain, keep_methods
from nbllm.nn.kernels import num_blocks, run_for, serves


@keep_methods
class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm`, with the same parameters and results."""

    def forward(self, x: Float[Tensor, "... size"]) -> Float[Tensor, "... size"]:
        """Return x less its mean, over its standard deviation, times the weight, plus the bias."""
        return _normalize(self, x) if _has_kernel(self, x) else super().forward(x)


@keep_methods
class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm`, with the same parameters and results."""

    def forward(self, x: Float[Tensor, "... size"]) -> Float[Tensor, "... size"]:
        """Return x over its root mean square, times the weight."""
        return _normalize(self, x) if _has_kernel(self, x) else super().forward(x)


@keep_methods
class OffsetRMSNorm(nn.RMSNorm):
    """RMS normalization whose weight is stored less 1, so that weight decay pulls the scale toward 1 (Gemma).

    The scale is applied in float32 or wider, before the result is rounded.
    """

    def forward(self, x: Float[Tensor, "... size"]) -> Float[Tensor, "... size"]:
        """Return x over its root mean square, times 1 + weight."""
        if _has_kernel(self, x):
            return _normalize(self, x)
        wide = torch.promote_types(x.dtype, torch.float32)
        scale = 1 + self.weight.to(wide)
        return F.rms_norm(x.to(wide), self.normalized_shape, scale, self.eps).to(x.dtype)


@dataclasses.dataclass(frozen=True)
class Norm:
    """A kind of normalization.

    Attributes:
        make: Makes one of a size and an epsilon.
        label: Its name in tables for people.
        centred: Whether the mean is subtracted.
        initial: The weight with which it scales nothing.
    """

    make: Callable[[int, float], nn.Module]
    label: str
    centred: bool
    initial: float = 1.0


# Layer normalization (Ba et al. 2016, arXiv:1607.06450) has weight and bias, RMS normalization (Zhang and Sennrich
# 2019, arXiv:1910.07467) a weight only; Gemma (Gemma Team 2024, arXiv:2403.08295) stores it less 1.
NORMS: dict[str, Norm] = {
    "layer_norm": Norm(lambda size, eps: LayerNorm(size, eps=eps), "LayerNorm", centred=True),
    "layer_norm_no_bias": Norm(
        lambda size, eps: LayerNorm(size, eps=eps, bias=False), "LayerNorm (no bias)", centred=True
    ),
    "rms_norm": Norm(lambda size, eps: RMSNorm(size, eps=eps), "RMSNorm", centred=False),
    "rms_norm_offset": Norm(
        lambda size, eps: OffsetRMSNorm(size, eps=eps), "RMSNorm (1 + weight)", centred=False, initial=0.0
    ),
}


def make_norm(kind: str, size: int, eps: float) -> nn.Module:
    """Return a normalization over the last dimension.

    Args:
        kind: A name in `NORMS`.
        size: Length of the last dimension.
        eps: Added to the variance.
    """
    return NORMS[kind].make(size, eps)


def add_and_normalize(
    norm: nn.Module, x: Float[Tensor, "... size"], branch: Float[Tensor, "... size"]
) -> tuple[Float[Tensor, "... size"], Float[Tensor, "... size"]]:
    """Return x + branch and norm(x + branch); where a kernel can, in one pass forward and one backward."""
    if (
        is_plain(norm, LayerNorm, RMSNorm, OffsetRMSNorm)
        and x.shape == branch.shape
        and _has_kernel(norm, x, branch)
    ):
        added, out = _AddAndNormalize.apply(x, branch, *_parameters(norm))
        return added, out
    added = x + branch
    return added, norm(added)


def keep_and_normalize(
    norm: nn.Module, x: Float[Tensor, "... size"]
) -> tuple[Float[Tensor, "... size"], Float[Tensor, "... size"]]:
    """Return x and norm(x); where a kernel can, the gradients that come back by both are added in its pass."""
    if is_plain(norm, LayerNorm, RMSNorm, OffsetRMSNorm) and _has_kernel(norm, x):
        kept, out = _AddAndNormalize.apply(x, None, *_parameters(norm))
        return kept, out
    return x, norm(x)


def _has_kernel(norm: Any, *operands: Tensor) -> bool:
    weight, bias = norm.weight, getattr(norm, "bias", None)
    fits = weight is not None and weight.dim() == 1 and operands[0].shape[-1:] == weight.shape
    return fits and serves("normalization", *operands, weight, bias, elements=operands[0].numel())


def _parameters(norm: Any) -> tuple[Tensor, Tensor | None, float, bool]:
    """Weight, bias, eps, and whether the mean is subtracted."""
    eps = torch.finfo(torch.float32).eps if norm.eps is None else norm.eps
    weight = 1 + norm.weight.float() if isinstance(norm, OffsetRMSNorm) else norm.weight
    return weight, getattr(norm, "bias", None), float(eps), isinstance(norm, nn.LayerNorm)


def _normalize(norm: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = _Normalize.apply(x, *_parameters(norm))
    return out


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, centred: bool
    ) -> Tensor:
        return _forward(ctx, x, None, (weight, bias, eps, centred))[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*_backward(ctx, None, grad), None, None)


class _AddAndNormalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        branch: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        centred: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return _forward(ctx, x, branch, (weight, bias, eps, centred))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_added: Tensor | None, grad_out: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight, grad_bias = grad_added, None, None
        if grad_out is not None:
            grad_x, grad_weight, grad_bias = _backward(ctx, grad_added, grad_out)
        return grad_x, grad_x if ctx.needs_input_grad[1] else None, grad_weight, grad_bias, None, None


def _forward(
    ctx: Any, x: Tensor, branch: Tensor | None, parameters: tuple[Tensor, Tensor | None, float, bool]
) -> tuple[Tensor, Tensor]:
    """Return x + branch (x where that is None) and its normalization; keep what the backward pass needs."""
    weight, bias, eps, centred = parameters
    x, dtype = x.contiguous(), weight.dtype
    added = x if branch is None else torch.empty_like(x)
    out = torch.empty_like(x)
    statistics = x.new_empty(x.numel() // x.shape[-1], 2, dtype=torch.float32)
    other = None if branch is None else branch.contiguous()
    weight = weight.to(torch.float32, memory_format=torch.contiguous_format)
    offset = torch.zeros_like(weight) if bias is None else bias.to(weight).contiguous()
    operands = (x, other, added, weight, offset, out, statistics, eps, int(centred))
    run_for(x.dtype, "normalization", "forward", num_blocks(len(statistics)), *operands)
    ctx.save_for_backward(added, weight, statistics)
    ctx.centred, ctx.has_bias, ctx.dtype = centred, bias is not None, dtype
    return added, out


def _backward(ctx: Any, residual: Tensor | None, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of the input, the weight and the bias; `residual` is added to the first."""
    x, weight, statistics = ctx.saved_tensors
    out, blocks = torch.empty_like(x), num_blocks(len(statistics))
    totals = x.new_empty(2, blocks, x.shape[-1], dtype=torch.float32)
    other = None if residual is None else residual.contiguous()
    grads = (grad.contiguous(), other, out, *totals)
    run_for(x.dtype, "normalization", "backward", blocks, x, weight, statistics, *grads, int(ctx.centred))
    grad_weight, grad_bias = totals.sum(1).to(ctx.dtype)
    return out, grad_weight, grad_bias if ctx.has_bias else None
