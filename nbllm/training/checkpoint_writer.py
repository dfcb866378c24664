"""Who writes a run's checkpoints, where several ranks train it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from nbllm.core.errors import RefusedError
from nbllm.distributed.ranks import Ranks
from nbllm.runs import checkpoint as checkpoints
from nbllm.runs.checkpoint import CheckpointInfo


class CheckpointWriter(Protocol):
    """Writes a checkpoint; how the weights lie over the ranks decides who writes what."""

    def __call__(
        self, path: Path, step: int, fill: Callable[[Path], None], state: dict[str, Any]
    ) -> CheckpointInfo:
        """Write a checkpoint of the run at `path`; every rank calls this at the same step.

        Args:
            path: The run directory.
            step: Steps done.
            fill: Writes what this rank holds into a folder.
            state: The rest of the state, as JSON can hold it.

        Returns:
            The same on every rank.

        Raises:
            RefusedError: On every rank: the disk did not take it. Nothing is left behind.
        """


class RankZeroWriter:
    """Rank 0 holds all that there is to be saved, and writes it; the others learn what came of it."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def __call__(
        self, path: Path, step: int, fill: Callable[[Path], None], state: dict[str, Any]
    ) -> CheckpointInfo:
        """Write on rank 0; see `CheckpointWriter`."""
        answer: dict[str, str] = {}
        if self.ranks.rank == 0:
            try:
                answer = {"name": checkpoints.save(path, step, fill, state).name}
            except OSError as error:
                answer = {"error": error.strerror or str(error)}
        answer = self.ranks.broadcast(answer)
        if "error" in answer:
            raise RefusedError(f"the checkpoint could not be written: {answer['error']}")
        try:
            return checkpoints.named(path, answer["name"])
        except OSError as error:  # it was deleted at once
            raise RefusedError(f"the checkpoint cannot be read: {error.strerror or error}") from error
