"""How much memory is really held, and how many bytes are really sent: torch itself says both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_above(compute: Callable[[], Any]) -> int:
    """Return by how many bytes the allocator's memory rose above what it was before, at most."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        compute()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def storage_bytes(tensors: Any) -> int:
    """Return the memory of tensors, of parts the part that is here; what several of them share counts once."""
    found = {}
    for tensor in tensors:
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        found[local.untyped_storage()._cdata] = local.untyped_storage().nbytes()
    return sum(found.values())


@contextmanager
def fake_group(size: int, rank: int = 0) -> Iterator[Any]:
    """Be one of so many ranks, of which the others do not exist: collectives do nothing."""
    dist.init_process_group("fake", rank=rank, world_size=size, store=FakeStore())
    try:
        yield _Ranks()
    finally:
        dist.destroy_process_group()


class _Ranks:
    rank = property(lambda self: dist.get_rank())
    size = property(lambda self: dist.get_world_size())


class Sent(TorchDispatchMode):
    """Counts what collectives send, by the ring: the bytes of a rank, by kind.

    Attributes:
        num_bytes: By kind of collective.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes: dict[str, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        kind = func._schema.name
        if kind.startswith(("c10d::", "_c10d_functional::")) and "wait" not in kind:
            self._count(kind.rpartition("::")[2].strip("_"), func, args, kwargs or {}, out)
        return out

    def _count(self, kind: str, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        sizes = [leaf.nbytes for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        share = (ranks := _ranks_of(args, kwargs)) and (ranks - 1) / ranks
        if kind.startswith("allreduce") or kind.startswith("all_reduce"):
            count = 2 * share * sum(sizes)
        elif "gather" in kind or "scatter" in kind:
            made = [leaf.nbytes for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
            # Of all parts and the own one, as one tensor or several, given or returned: the size of all.
            count = share * max(*sizes, *made, sum(sizes) - min(sizes))
        elif "alltoall" in kind or "all_to_all" in kind:
            count = share * max(sizes)
        else:
            return
        self.num_bytes[kind] = self.num_bytes.get(kind, 0.0) + count


def _ranks_of(args: Any, kwargs: Any) -> int:
    """Return how many ranks a collective has, by the group that it is given: an object, or a name."""
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, str) and leaf not in ("sum", "avg"):
            return dist.distributed_c10d._resolve_process_group(leaf).size()
        if isinstance(leaf, torch.ScriptObject):
            with_size = dist.ProcessGroup.unbox(leaf)
            return with_size.size()
    raise AssertionError(args)
