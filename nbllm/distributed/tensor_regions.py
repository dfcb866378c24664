"""Where activations enter and leave the part of a network that each tensor rank computes for itself.

Each function is one operation forward and its adjoint backward. Within a region, every rank computes with its own
heads, columns and rows, and the gradient that it has of what entered is a part of a sum.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

# Those that DTensor uses and torch.compile sees; the functions around them have other names in each version of torch.
_collectives: Any = torch.ops._c10d_functional

Stream = Float[Tensor, "batch position hidden"]


class Region:
    """The ranks of tensor parallelism, and how activations pass between what they share and what each computes.

    Args:
        mesh: The ranks, in one dimension.
        sequence: Whether between regions each rank holds a part of every sequence (sequence parallelism), not all.

    Attributes:
        length: Tokens of the sequences that now pass; set by the attention of the block that they enter.

    Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3 (f and g); Korthikanti et al. 2022, arXiv:2205.05198,
        section 4.2 (with parts of sequences).
    """

    def __init__(self, mesh: DeviceMesh, *, sequence: bool) -> None:
        self.group, self.rank, self.size = mesh.get_group().group_name, mesh.get_local_rank(), mesh.size()
        self.sequence = sequence
        self.length = 0

    def enter(self, x: Stream) -> Stream:
        """Return all positions of x; backward, the gradients of the ranks are summed."""
        if not self.sequence:
            return self.sum_gradient(x)
        out: Tensor = _Gather.apply(x, self)
        return out[:, : self.length]

    def leave(self, x: Stream) -> Stream:
        """Return the sum of the ranks' x, at this rank's positions under sequence parallelism."""
        if not self.sequence:
            return self.sum_parts(x)
        out: Tensor = _Scatter.apply(self.padded(x), self)
        return out

    def sum_parts(self, x: Stream) -> Stream:
        """Return the sum of the ranks' x, at all positions."""
        out: Tensor = _Sum.apply(x, self)
        return out

    def split(self, x: Stream) -> Stream:
        """Return this rank's positions of x, which all ranks have; missing ones at the end are 0."""
        out: Tensor = _Split.apply(self.padded(x), self)
        return out

    def join(self, x: Stream) -> Stream:
        """Return the positions of all ranks."""
        out: Tensor = _Join.apply(x, self)
        return out

    def add_once(self, x: Tensor) -> Tensor:
        """Return x on the first rank, else 0: what is added to a sum over ranks, each of which has its gradient."""
        out: Tensor = x if self.rank == 0 else _Zero.apply(x)
        return out

    def sum_gradient(self, x: Tensor) -> Tensor:
        """Return x; backward, the gradients of the ranks are summed."""
        out: Tensor = _SumGradient.apply(x, self)
        return out

    def summed(self, x: Tensor) -> Tensor:
        """Return the sum of the ranks' x."""
        return _waited(_collectives.all_reduce(x.contiguous(), "sum", self.group))

    def gathered(self, x: Stream) -> Stream:
        """Return the ranks' positions, one rank's after another's."""
        out = _waited(_collectives.all_gather_into_tensor(x.contiguous(), self.size, self.group))
        joined: Tensor = out.unflatten(0, (self.size, -1)).transpose(0, 1).flatten(1, 2)
        return joined

    def scattered(self, x: Stream) -> Stream:
        """Return the sum of the ranks' x at this rank's positions."""
        parts = x.unflatten(1, (self.size, -1)).transpose(0, 1).flatten(0, 1)
        return _waited(_collectives.reduce_scatter_tensor(parts.contiguous(), "sum", self.size, self.group))

    def own(self, x: Stream) -> Stream:
        """Return this rank's positions of x."""
        part: Tensor = x.unflatten(1, (self.size, -1))[:, self.rank].contiguous()
        return part

    def padded(self, x: Stream) -> Stream:
        """Return x with as many positions of 0 at its end as are missing to equal parts."""
        missing = -x.shape[1] % self.size
        return F.pad(x, (0, 0, 0, missing)) if missing else x


def _waited(x: Tensor) -> Tensor:
    """Return what a collective results in, a plain tensor."""
    out: Tensor = _collectives.wait_tensor(x)
    return out


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, region: Region) -> Tensor:
        ctx.region = region
        return region.gathered(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.region.scattered(grad), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, region: Region) -> Tensor:
        ctx.region = region
        return region.scattered(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.region.gathered(grad), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, region: Region) -> Tensor:
        return region.summed(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, region: Region) -> Tensor:
        ctx.region = region
        return region.own(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.region.gathered(grad), None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, region: Region) -> Tensor:
        ctx.region = region
        return region.gathered(x)[:, : region.length]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.region.own(ctx.region.padded(grad)), None


class _SumGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, region: Region) -> Tensor:
        ctx.region = region
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.region.summed(grad), None


class _Zero(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad
