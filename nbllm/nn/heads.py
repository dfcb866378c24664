"""From a fused projection to heads and back, without copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def split_heads(
    x: Float[Tensor, "batch position channel"], counts: Sequence[int], head_dim: int
) -> tuple[Float[Tensor, "batch head position head_dim"], ...]:
    """Split the last dimension into groups of heads: views of `x`, (batch, head, position, head_dim) each.

    The backward pass returns the groups' gradients as one tensor. Where they already lie side by side in one
    buffer, as the blocked attention leaves them, that buffer is it, and nothing is copied.

    Args:
        x: (batch, position, channel), channel = sum(counts) * head_dim.
        counts: Heads in each group.
        head_dim: Width of a head.
    """
    groups: tuple[Tensor, ...] = _SplitHeads.apply(x, tuple(counts), head_dim)
    return groups


class _SplitHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: tuple[int, ...], head_dim: int) -> tuple[Tensor, ...]:
        ctx.shape = x.shape
        heads = x.view(*x.shape[:2], -1, head_dim)
        return tuple(group.transpose(1, 2) for group in heads.split(counts, dim=2))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        together = _side_by_side(grads)
        if together is None:
            together = torch.cat([grad.transpose(1, 2) for grad in grads], dim=2)
        return together.reshape(ctx.shape), None, None


def _side_by_side(groups: Sequence[Tensor]) -> Tensor | None:
    """Return the contiguous (batch, position, head, head_dim) of which `groups` are the parts, if there is one."""
    first = groups[0]
    batch, _, length, head_dim = first.shape
    num_heads = sum(group.shape[1] for group in groups)
    strides = (length * num_heads * head_dim, head_dim, num_heads * head_dim, 1)
    place = first.storage_offset()
    for group in groups:
        same = group.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or group.stride() != strides or group.storage_offset() != place:
            return None
        place += group.shape[1] * head_dim
    return first.as_strided(
        (batch, length, num_heads, head_dim), (strides[0], strides[2], strides[1], 1), first.storage_offset()
    )
