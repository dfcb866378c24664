"""A run as its directory tells it: everything that can be read of it, and nothing that steers it."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from nbllm.core.errors import RunError
from nbllm.core.io import expand_user
from nbllm.runs import checkpoint as checkpoint_files
from nbllm.runs.checkpoint import CheckpointInfo
from nbllm.runs.events import Event, EventReader, is_count
from nbllm.runs.liveness import LIVE, judge
from nbllm.runs.rank_logs import log_end, ranks_with_logs
from nbllm.runs.rank_states import RankState, rank_states
from nbllm.runs.reader import RunReader
from nbllm.runs.settings import SettingTable, declared_limits
from nbllm.runs.step_profile import StepProfile, step_profiles
from nbllm.runs.summary import RunSummary, parent_of, planned_steps, summarize
from nbllm.runs.timeline import Timeline


class RecordedRun:
    """A run: its record, its events so far, and what follows from them. Reading never disturbs the run.

    Args:
        path: The run's folder.

    Raises:
        RunError: There is no run at `path`.
    """

    def __init__(self, path: Path | str) -> None:
        self._opened = expand_user(path).absolute()  # as it was named: it may be a link
        self.path = Path(os.path.realpath(self._opened))
        self._reader = RunReader(self.path)

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.path.name

    @property
    def record(self) -> dict[str, Any]:
        """What `run.json` says."""
        return self._reader.record

    @property
    def timeline(self) -> Timeline:
        """The fold of all events so far; brought up to date by each look."""
        return self._reader.timeline()

    @property
    def guard(self) -> AbstractContextManager[object]:
        """Hold this while reading from `timeline` where several threads look; all that is read is of one moment."""
        return self._reader.guard()

    @property
    def summary(self) -> RunSummary:
        """Where it stands: state, step, losses, times."""
        with self._reader.guard():
            return summarize(self.path, self.record, self.timeline, self.state)

    @property
    def exists(self) -> bool:
        """Whether its folder is still there."""
        return self._reader.exists

    @property
    def state(self) -> str:
        """One of starting, running, paused, finished, stopped, failed; or lost: its trainer is gone."""
        session, grew = self._reader.session()
        return judge(session, self.path, self.record, grew) if self.exists else "lost"

    @property
    def is_live(self) -> bool:
        """Whether a trainer is there to take commands."""
        return self.state in LIVE

    @property
    def step(self) -> int:
        """Optimizer steps done, on the current branch."""
        return self.timeline.step

    @property
    def steps(self) -> int | None:
        """Optimizer steps in all: as planned, or as they were set since; `None` when neither is known."""
        return planned_steps(self.record, self.timeline)

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that the run was started with."""
        value = self.record.get("config")
        return value if isinstance(value, dict) else {}

    @property
    def parent(self) -> dict[str, Any] | None:
        """The run and the step that this one was forked from, or `None`."""
        return parent_of(self.record)

    @property
    def settings(self) -> SettingTable:
        """What `set` can change while the run goes on, and what it is now."""
        values = dict(self.config)
        for action in self.timeline.effective:
            if action.action == "set":
                values.update(action.args)
        return SettingTable(self._reader.declared, values)

    @property
    def cannot(self) -> dict[str, str]:
        """What its loop cannot do, by action ("rewind", "evaluate", "fork", ...), with the reasons."""
        return declared_limits(self.record)

    @property
    def ranks(self) -> list[RankState]:
        """How the processes of a run that several train are doing, by their newest report; of one process: empty."""
        return rank_states(self.timeline.ranks)

    @property
    def checkpoints(self) -> list[CheckpointInfo]:
        """The checkpoints on the disk, in the order in which they were saved."""
        return checkpoint_files.checkpoints(self.path)

    @property
    def profiles(self) -> list[StepProfile]:
        """What the ranks did in the steps that were profiled (`profile`), in their order; each is shown in a cell."""
        return step_profiles(self.path)

    @property
    def problems(self) -> list[str]:
        """What is odd about the directory itself, in sentences; mostly nothing."""
        found = []
        if not self.exists:
            found.append("The run's folder is gone.")
        damaged = self._reader.damaged
        if damaged:
            found.append(f"{damaged:,} damaged line{'s' if damaged > 1 else ''} of events skipped.")
        return found

    @property
    def reason(self) -> str:
        """Why the run ended, as its trainer said; "" while it goes on."""
        end = self.timeline.session.end
        return "" if end is None or end.get("reason") is None else str(end["reason"])

    @property
    def failed_rank(self) -> int | None:
        """The rank whose error ended the run, where several trained it."""
        end = self.timeline.session.end
        rank = None if end is None else end.get("rank")
        return rank if is_count(rank) else None

    def log(self, rank: int | None = None) -> str:
        """Return the last lines that a process of this run has printed, tracebacks among them.

        Args:
            rank: Which of the run's ranks; None: the one that failed, else the first.

        Raises:
            RunError: There is no such rank.
        """
        ranks = ranks_with_logs(self.path)
        if rank is None and ranks:
            rank = ranks[0] if self.failed_rank is None else self.failed_rank
        if rank is not None and rank not in ranks:
            known = ", ".join(map(str, ranks)) or "none"
            raise RunError(f"Rank {rank} of {self.name} has no log; there are: {known}.", where=self.path)
        return log_end(self.path, rank)

    def events(self, kind: str | None = None) -> list[Event]:
        """Return all events, or those of one kind, read afresh from the disk: the superseded ones too."""
        batches = EventReader(self.path).batches()
        return [event for batch in batches for event in batch if kind is None or event["kind"] == kind]

    def history(self, metric: str = "loss") -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return (steps, values) of a metric on the current branch.

        Args:
            metric: "loss", "lr", "grad_norm", "tokens_per_second", "memory" (bytes),
                "seconds", ..., "evaluation.loss", "evaluation.bits_per_byte".

        Raises:
            RunError: The run has no such metric.
        """
        with self._reader.guard():
            return self.timeline.history(metric)
