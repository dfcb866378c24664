"""Rows of the head's loss that several processes share out, since each of them has all hidden states."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class RowShare(NamedTuple):
    """Which rows a process computes: every `size`-th, from `rank` on, so that all have about as many.

    Attributes:
        rank: This process among those that share.
        size: How many these are.
        group: Name of their group in torch.distributed.
    """

    rank: int
    size: int
    group: str

    def of(self, rows: Float[Tensor, "token hidden"]) -> Float[Tensor, "own hidden"]:
        """Return this process's rows."""
        return rows[self.rank :: self.size]

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum of x over the processes, each of which goes on with it; its gradients are summed as well."""
        out: Tensor = _Sum.apply(x, self.group)
        return out


_share: ContextVar[RowShare | None] = ContextVar("shared rows", default=None)


@contextlib.contextmanager
def share_rows(share: RowShare) -> Iterator[None]:
    """Within the block, in this thread, the rows of a loss are shared out so; all processes enter it at once."""
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)


def current_share() -> RowShare | None:
    """Return the share that `share_rows` has set; None: this process computes all rows."""
    return _share.get()


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str) -> Tensor:
        ctx.group = group
        return _summed(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _summed(grad, ctx.group), None


def _summed(x: Tensor, group: str) -> Tensor:
    collectives: Any = torch.ops._c10d_functional
    out: Tensor = collectives.wait_tensor(collectives.all_reduce(x.contiguous(), "sum", group))
    return out
