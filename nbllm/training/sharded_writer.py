"""Checkpoints that all ranks write together, while training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlan, WriteItem

from nbllm.core.io import sha256_file, sync_file
from nbllm.models.tensor_shards import FOLDER, write_index, write_parts
from nbllm.runs.checkpoint import CheckpointInfo, Draft
from nbllm.training.checkpoint_writer import Contents, name_of, written

_Parts = dict[str, tuple[tuple[int, ...], Tensor]]


class ShardedWriter:
    """Every rank writes its parts of the tensors, from a copy in CPU memory and by a thread; rank 0 the other files.

    What several ranks hold is written by one of them: torch.distributed.checkpoint's planner shares it out, and checks
    that the parts make up each tensor. The checkpoint takes its place when all parts are on the disk, with the manifest
    that holds their checksums. The ranks must see one file system.

    Args:
        group: A process group that can send objects between CPUs (gloo); None: the default group is one.
    """

    is_asynchronous = takes_parts = True

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self._rank, self._size = dist.get_rank(group), dist.get_world_size(group)
        self._draft: Draft | None = None  # rank 0's
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._path, self._state = Path(), dict[str, Any]()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nbllm checkpoint")
        self._writing: Future[dict[str, str]] | None = None

    def begin(self, path: Path, step: int, contents: Contents, state: Mapping[str, Any]) -> None:
        """Copy this rank's parts, and let a thread write them; see `CheckpointWriter`."""
        assert self._writing is None, "one checkpoint at a time"
        folder = Path(name_of(self._of_rank_zero(self._make_folder(path, step, contents))))
        parts = self._copies(contents.tensors)
        self._path, self._state = path, dict(state)
        self._writing = self._thread.submit(_write, parts, folder, self._rank)

    def is_written(self) -> bool:
        """Return whether this rank's thread is done."""
        return self._writing is None or self._writing.done()

    def finish(self) -> CheckpointInfo:
        """Wait for all ranks' parts, and let rank 0 complete the checkpoint; see `CheckpointWriter`."""
        assert self._writing is not None, "no checkpoint was begun"
        try:
            answer: dict[str, Any] = {"sums": self._writing.result()}
        except Exception as error:
            answer = {"error": f"{_reason(error)} (rank {self._rank})" if self._rank else _reason(error)}
        self._writing = None
        answers: list[Any] | None = [None] * self._size if self._rank == 0 else None
        dist.gather_object(answer, answers, group=self._group, group_dst=0)
        return written(self._path, name_of(self._of_rank_zero(self._complete(answers or []))))

    def _make_folder(self, path: Path, step: int, contents: Contents) -> dict[str, str]:
        """On rank 0, make the folder with the files that it alone writes."""
        if self._rank > 0:
            return {}
        try:
            self._draft = Draft(path, step, contents.fill)
            (self._draft.folder / FOLDER).mkdir(exist_ok=True)
        except OSError as error:
            return {"error": _reason(error)}
        return {"name": str(self._draft.folder)}

    def _copies(self, tensors: Mapping[str, Tensor]) -> _Parts:
        """Return copies of the parts that this rank is to write."""
        planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        planner.set_up_planner(dict(tensors), is_coordinator=self._rank == 0)
        own = planner.create_local_plan()
        own = SavePlan([item for item in own.items if all(_part(item)[1]) or not all(_whole(item))])
        plans: list[Any] | None = [None] * self._size if self._rank == 0 else None
        dist.gather_object(own, plans, group=self._group, group_dst=0)
        if plans is not None:
            self._shapes = {i.index.fqn: _whole(i) for plan in plans for i in plan.items}
            plans, _ = planner.create_global_plan(plans)
        mine: list[Any] = [None]
        dist.scatter_object_list(mine, plans, group=self._group, group_src=0)
        copies: _Parts = {}
        for item in planner.finish_plan(mine[0]).items:
            part = planner.lookup_object(item.index).detach()
            assert item.index.fqn not in copies, "a rank holds one part of a tensor"
            copies[item.index.fqn] = (
                _part(item)[0],
                part.to("cpu", copy=True, memory_format=torch.contiguous_format),
            )
        return copies

    def _complete(self, answers: list[dict[str, Any]]) -> dict[str, str]:
        """On rank 0, put the manifest over all files and the folder in its place."""
        if self._draft is None:
            return {}
        draft, self._draft = self._draft, None
        errors = [answer["error"] for answer in answers if "error" in answer]
        if errors:
            draft.discard()
            return {"error": errors[0]}
        sums = {name: sha256 for answer in answers for name, sha256 in answer["sums"].items()}
        try:
            write_index(self._shapes, draft.folder / FOLDER)
            return {"name": draft.complete(self._state, sums).name}
        except OSError as error:
            return {"error": _reason(error)}

    def _of_rank_zero(self, answer: dict[str, str]) -> dict[str, str]:
        box = [answer]
        dist.broadcast_object_list(box, group=self._group, group_src=0)
        return box[0]


def _write(parts: _Parts, folder: Path, rank: int) -> dict[str, str]:
    """Write a rank's file, and return its checksum by its name in the checkpoint's folder."""
    if not parts:
        return {}
    path = folder / FOLDER / f"{rank:05d}.safetensors"
    write_parts(parts, path)
    sync_file(path)
    return {f"{FOLDER}/{path.name}": sha256_file(path)}


def _part(item: WriteItem) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return where a part begins in its tensor, and its shape."""
    assert item.tensor_data is not None, "all that is saved are tensors"
    return tuple(item.tensor_data.chunk.offsets), tuple(item.tensor_data.chunk.sizes)


def _whole(item: WriteItem) -> tuple[int, ...]:
    assert item.tensor_data is not None
    return tuple(item.tensor_data.size)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"{type(error).__name__}: {error}"
