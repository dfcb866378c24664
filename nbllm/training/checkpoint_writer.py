"""Who writes a run's checkpoints, where several ranks train it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from nbllm.core.errors import RefusedError
from nbllm.distributed.ranks import Ranks
from nbllm.runs import checkpoint as checkpoints
from nbllm.runs.checkpoint import CheckpointInfo


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a checkpoint holds beside the loop's own state.

    Args:
        fill: Writes files into a folder; called on rank 0 alone.
        tensors: Those of which each rank holds a part or a copy, by name: plain tensors and DTensors. None where
            `fill` writes everything.
    """

    fill: Callable[[Path], None]
    tensors: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)


class CheckpointWriter(Protocol):
    """Writes checkpoints, one at a time; how the weights lie over the ranks decides who writes what.

    Every rank calls `begin` and `finish` at the same step.

    Attributes:
        is_asynchronous: Whether writing goes on after `begin` has returned.
        takes_parts: Whether each rank has to give its own tensors; else rank 0 writes everything.
    """

    is_asynchronous: bool
    takes_parts: bool

    def begin(self, path: Path, step: int, contents: Contents, state: Mapping[str, Any]) -> None:
        """Begin a checkpoint of the run at `path`. When this returns, what it holds may change.

        Args:
            path: The run directory.
            step: Steps done.
            contents: What this rank has to write.
            state: The rest of the state, as JSON can hold it.

        Raises:
            RefusedError: On every rank: the disk did not take it. Nothing is left behind.
        """

    def is_written(self) -> bool:
        """Return whether this rank has written its part, so that `finish` need not wait for it."""

    def finish(self) -> CheckpointInfo:
        """Wait until the checkpoint that was begun is complete; the result is the same on every rank.

        Raises:
            RefusedError: As `begin`.
        """


class RankZeroWriter:
    """Rank 0 holds all that there is to be saved, and writes it at once; the others learn what came of it."""

    is_asynchronous = takes_parts = False

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._path, self._name = Path(), ""

    def begin(self, path: Path, step: int, contents: Contents, state: Mapping[str, Any]) -> None:
        """Write on rank 0; see `CheckpointWriter`."""
        answer: dict[str, str] = {}
        if self.ranks.rank == 0:
            try:
                answer = {"name": checkpoints.save(path, step, contents.fill, state).name}
            except OSError as error:
                answer = {"error": error.strerror or str(error)}
        self._path, self._name = path, name_of(self.ranks.broadcast(answer))

    def is_written(self) -> bool:
        """It is written when it is begun."""
        return True

    def finish(self) -> CheckpointInfo:
        """Return the checkpoint."""
        return written(self._path, self._name)


def name_of(answer: Mapping[str, str]) -> str:
    """Return the name of a checkpoint from rank 0's answer.

    Raises:
        RefusedError: The answer is that it could not be written.
    """
    if "error" in answer:
        raise RefusedError(f"the checkpoint could not be written: {answer['error']}")
    return answer["name"]


def written(path: Path, name: str) -> CheckpointInfo:
    """Return the checkpoint of a run that has just been written.

    Raises:
        RefusedError: It was deleted at once, or cannot be read.
    """
    try:
        return checkpoints.named(path, name)
    except OSError as error:
        raise RefusedError(f"the checkpoint cannot be read: {error.strerror or error}") from error
