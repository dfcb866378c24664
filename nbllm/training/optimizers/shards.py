"""Parameters that are split over ranks (DTensors), as an optimizer sees them; plain tensors are themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def local(x: Tensor) -> Tensor:
    """Return the part of `x` that this rank holds; it shares memory with `x`."""
    split = _as_split(x)
    return x if split is None else split.to_local()


def whole(x: Tensor) -> Tensor:
    """Return all of `x`: gathered from the ranks where it is split, so that every rank must call this."""
    split = _as_split(x)
    return x if split is None else split.full_tensor()


def split_like(x: Tensor, parameter: Tensor) -> Tensor:
    """Return this rank's part of `x`, a whole tensor of the parameter's shape that every rank has."""
    split = _as_split(parameter)
    if split is None:
        return x
    from torch.distributed.tensor import DTensor, Replicate

    mesh = split.device_mesh
    everywhere = DTensor.from_local(x, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(mesh, split.placements).to_local()


def joined_from(x: Tensor, parameter: Tensor, last_dim: int | None = None) -> Tensor:
    """Return a DTensor of which `x` is this rank's part, split as the parameter is; plain where that is plain.

    Args:
        x: Of the shape of the parameter's local part, but for the last dimension.
        parameter: What it belongs to.
        last_dim: Size of the last dimension of the whole; None is the parameter's.
    """
    split = _as_split(parameter)
    if split is None:
        return x
    from torch.distributed.tensor import DTensor

    shape = torch.Size((*parameter.shape[:-1], last_dim)) if last_dim else parameter.shape
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        x, split.device_mesh, split.placements, run_check=False, shape=shape, stride=stride
    )


def _as_split(x: Tensor) -> DTensor | None:
    """Return a DTensor as what it is, None for a plain tensor; torch's module for them is loaded only with them."""
    return cast("DTensor", x) if hasattr(x, "device_mesh") else None
