"""Tensors of which each rank holds a part (DTensor), beside plain ones, of which it holds all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributed.tensor.placement_types import Placement


def local_part(tensor: Tensor) -> Tensor:
    """Return what this rank holds of a tensor, in the same memory, without gradient."""
    held: Tensor = tensor.detach()
    return held.to_local() if isinstance(held, DTensor) else held


def whole_tensor(tensor: Tensor) -> Tensor:
    """Return all of a tensor, without gradient; all ranks that hold a part of it call this at once."""
    held: Tensor = tensor.detach()
    return held.full_tensor() if isinstance(held, DTensor) else held


@torch.no_grad()
def assign_part(tensor: Tensor, whole: Tensor) -> None:
    """Copy this rank's part of `whole`, which this rank has, into a tensor; nothing is sent."""
    if not isinstance(tensor, DTensor):
        tensor.copy_(whole)
    else:
        local = tensor.to_local()
        local.copy_(local_part(placed_like(tensor, whole.to(local.device))))


def placed_like(tensor: Tensor, whole: Tensor) -> Tensor:
    """Return `whole`, which this rank has, laid over ranks as a tensor of its shape is; anything else as it is."""
    if not isinstance(tensor, DTensor) or isinstance(whole, DTensor) or whole.ndim != tensor.ndim:
        return whole
    return distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)


def num_copies(tensor: Tensor, num_ranks: int) -> int:
    """Return on how many of so many ranks each element of a tensor is held."""
    if not isinstance(tensor, DTensor):
        return num_ranks
    mesh, placements = tensor.device_mesh, tensor.placements
    return num_ranks // math.prod(
        mesh.size(i) for i, each in enumerate(placements) if not _is_replicated(each)
    )


def sum_of_squares(tensors: Iterable[Tensor], num_ranks: int) -> Tensor:
    """Return this rank's share of the sum of squares over tensors that so many ranks hold: their shares make the sum.

    Args:
        tensors: Plain ones, which are equal on all of these ranks, or parts.
        num_ranks: The ranks.

    Returns:
        A float64 scalar on the CPU.
    """
    by_copies: dict[int, list[Tensor]] = {}
    for tensor in tensors:
        by_copies.setdefault(num_copies(tensor, num_ranks), []).append(local_part(summed(tensor)))
    shares = (norm_of(held).double().square() / copies for copies, held in by_copies.items())
    return sum(shares, start=torch.zeros((), dtype=torch.float64))


def norm_of(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all elements of some plain tensors, on the CPU."""
    return nn.utils.get_total_norm(tensors, foreach=True).cpu()


def summed(tensor: Tensor) -> Tensor:
    """Return a tensor whose ranks hold summands of it (`Partial`) as their sum; any other as it is."""
    if not isinstance(tensor, DTensor) or not any(each.is_partial() for each in tensor.placements):
        return tensor
    placements = [Replicate() if each.is_partial() else each for each in tensor.placements]
    return tensor.redistribute(placements=placements)


def _is_replicated(placement: Placement) -> bool:
    return placement.is_replicate() or placement.is_partial()  # a sum once it is summed
