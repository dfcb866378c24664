"""The ranks of a plan as a mesh with named axes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch.distributed.device_mesh import init_device_mesh

from nbllm.distributed.plan import Plan

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

AXES = ("pipeline", "replicate", "shard", "context", "tensor")
"""Outer to inner: ranks that exchange most are neighbours. Data ranks are replicate x shard."""

DATA = ("replicate", "shard")


def axis_sizes(plan: Plan) -> dict[str, int]:
    """Return the size of each axis of a sized plan."""
    assert plan.data is not None, "sized first"
    sizes = (plan.pipeline, plan.data // plan.num_shards, plan.num_shards, plan.context, plan.tensor)
    return dict(zip(AXES, sizes, strict=True))


class Mesh:
    """The ranks of the default process group, by the axes of a plan.

    All ranks make it at once, and ask it for the same axes in the same order, since process groups are made.

    Args:
        plan: The plan, sized.
        device_type: "cpu" or "cuda".

    Attributes:
        sizes: Of each of `AXES`.
    """

    def __init__(self, plan: Plan, device_type: str) -> None:
        self.sizes = axis_sizes(plan)
        # An axis of one rank would only cost a process group; the whole needs one axis at least.
        self._names = tuple(name for name in AXES if self.sizes[name] > 1) or ("replicate",)
        self._whole: DeviceMesh = init_device_mesh(
            device_type, tuple(self.sizes[name] for name in self._names), mesh_dim_names=self._names
        )
        self._flat: dict[tuple[str, ...], DeviceMesh] = {}

    def size(self, *axes: str) -> int:
        """Return how many ranks some axes have together."""
        return math.prod(self.sizes[name] for name in axes)

    def rank(self, *axes: str) -> int:
        """Return this rank's place on some axes, counted with the last one the fastest."""
        place = 0
        for name in axes:
            local = self._whole.get_local_rank(name) if name in self._names else 0
            place = place * self.sizes[name] + local
        return place

    def submesh(self, *axes: str) -> DeviceMesh | None:
        """Return the ranks that differ from this one on some axes alone, one dimension an axis; None: it is alone.

        Axes of size 1 are left out.
        """
        present = tuple(name for name in axes if self.sizes[name] > 1)
        return self._whole[present] if present else None

    def flat(self, *axes: str) -> DeviceMesh | None:
        """Return the same ranks as a mesh of one dimension; None: this rank is alone."""
        present = tuple(name for name in axes if self.sizes[name] > 1)
        if len(present) < 2:
            return self.submesh(*present)
        if present not in self._flat:
            self._flat[present] = self._whole[present]._flatten("_".join(present))
        return self._flat[present]

    def group(self, *axes: str) -> ProcessGroup | None:
        """Return the process group of the same ranks; None: this rank is alone."""
        mesh = self.flat(*axes)
        return None if mesh is None else mesh.get_group()
