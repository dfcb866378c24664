"""One summary of a run: what lists, snapshots, panels, progress lines and comparisons say of it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nbllm.core.quantities import duration
from nbllm.runs.events import is_count, is_number
from nbllm.runs.liveness import judge
from nbllm.runs.process import describe
from nbllm.runs.skim import Skim
from nbllm.runs.store import read_record
from nbllm.runs.timeline import Points, Timeline

NATS = "nats/token"
MIN_STEPS = 5  # for an estimate of the time left
SEEN_STEPS = 200
REPLAY_OVER = "the replay is over"  # why a replay stops at the end of what it repeats


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSummary:
    """Where a run stands, on its current branch. Numbers that are not known, or not finite, are `None`.

    Args:
        name: Its name.
        state: One of `nbllm.runs.liveness.STATES`.
        step: Optimizer steps done.
        steps: Optimizer steps in all: as planned, or as they were set since.
        loss: The newest training loss, in `loss_unit`.
        held_out_loss: The newest loss on held-out text, in `loss_unit`.
        loss_unit: "nats/token", or "" where the loop does not say so.
        bits_per_byte: The newest bits a byte on held-out text.
        lr: Learning rate of the newest step.
        grad_norm: Gradient norm of the newest step.
        tokens: Tokens trained on.
        tokens_per_second: Speed of the newest step.
        memory: Bytes of memory that the trainer held.
        seconds: Time spent in training steps.
        reason: Why it ended, as its trainer said; "" while it goes on.
        parent: Name of the run that it was forked from, or "".
        parent_step: The step that it was forked at.
        replay_of: Name of the run that it repeats, or "".
        trainer: Which process trains it, or trained it last: "process 12 on host".
        created: When its folder was made, in seconds since 1970.
        last_time: When its newest event was written.
    """

    name: str
    state: str
    step: int
    steps: int | None
    loss: float | None
    held_out_loss: float | None
    loss_unit: str
    bits_per_byte: float | None
    lr: float | None
    grad_norm: float | None
    tokens: float | None
    tokens_per_second: float | None
    memory: float | None
    seconds: float | None
    reason: str
    parent: str
    parent_step: int | None
    replay_of: str
    trainer: str
    created: float | None
    last_time: float | None

    @property
    def label(self) -> str:
        """The state in a word, as lists show it: "replayed" for a replay that has come to its end."""
        over = self.state == "finished" or (self.state == "stopped" and self.reason == REPLAY_OVER)
        return "replayed" if self.replay_of and over else self.state

    @property
    def progress(self) -> float | None:
        """The share of the steps that is done, 0 to 1; `None` when it is not known how many there are."""
        return min(1.0, self.step / self.steps) if self.steps else None

    @property
    def step_text(self) -> str:
        """How far it is: "step 120 of 600"."""
        return f"step {self.step:,}" + (f" of {self.steps:,}" if self.steps else "")

    @property
    def parent_text(self) -> str:
        """What it was made from: "name at step" for a fork, "replay of name", or ""."""
        if self.replay_of:
            return f"replay of {self.replay_of}"
        step = "?" if self.parent_step is None else self.parent_step
        return f"{self.parent} at {step}" if self.parent else ""

    @property
    def age_text(self) -> str:
        """How long ago it was made, or "" when that is not known."""
        if self.created is None:
            return ""
        seconds = time.time() - self.created
        return duration(round(seconds)) if seconds >= 1 else "now"

    def __str__(self) -> str:
        text = f"Run {self.name!r}: {self.label}, {self.step_text}"
        return text if self.loss is None else f"{text}, loss {self.loss:.3f}"


def summarize(folder: Path, record: Mapping[str, Any], timeline: Timeline, state: str) -> RunSummary:
    """Return the summary of a run.

    Args:
        folder: The run's folder.
        record: What its `run.json` says; it may hold anything.
        timeline: The fold of its events.
        state: What `judge` says of it.
    """
    session = timeline.session
    reason = None if session.end is None else session.end.get("reason")
    parent = parent_of(record)
    at = None if parent is None else parent.get("step")
    created, replay = record.get("created"), record.get("replay")
    return RunSummary(
        name=folder.name,
        state=state,
        step=session.step,
        steps=planned_steps(record, timeline),
        loss=session.loss,
        held_out_loss=newest(timeline.evaluations, "loss"),
        loss_unit=NATS if record.get("loss_unit") == NATS else "",
        bits_per_byte=newest(timeline.evaluations, "bits_per_byte"),
        lr=newest(timeline.steps, "lr"),
        grad_norm=newest(timeline.steps, "grad_norm"),
        tokens=newest(timeline.steps, "tokens"),
        tokens_per_second=newest(timeline.steps, "tokens_per_second"),
        memory=newest(timeline.steps, "memory"),
        seconds=newest(timeline.steps, "seconds"),
        reason="" if reason is None else str(reason),
        parent="" if parent is None else parent_name(parent),
        parent_step=at if is_count(at) else None,
        replay_of=str(replay.get("of", "?")) if isinstance(replay, dict) else "",
        trainer="" if session.start is None else describe(session.start),
        created=float(created) if is_number(created) and created > 0 else None,
        last_time=session.last_time,
    )


def read_summary(folder: Path, record: Mapping[str, Any] | None = None) -> RunSummary:
    """Return the summary of a run, quickly however long it is: most of its steps are not read.

    Raises:
        RunError: There is no run.
    """
    record = read_record(folder) if record is None else record
    timeline = Skim(folder, record, curve=False).look()
    return summarize(folder, record, timeline, judge(timeline.session, folder, record))


def planned_steps(record: Mapping[str, Any], timeline: Timeline) -> int | None:
    """Return the optimizer steps in all: as the record says, or as they were set since; `None` when neither tells."""
    for action in reversed(timeline.effective):
        steps = action.args.get("steps")
        if is_count(steps):
            return steps
    config = record.get("config")
    planned = record.get("steps", config.get("steps") if isinstance(config, dict) else None)
    return planned if is_count(planned) else None


def newest(points: Points, name: str) -> float | None:
    """Return the newest value of a column; `None` where there is none, or it is not finite."""
    column = points.columns.get(name)
    return column[-1] if column and math.isfinite(column[-1]) else None


def parent_of(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a record says of the run that this one was forked from."""
    parent = record.get("parent")
    return parent if isinstance(parent, dict) else None


def parent_name(parent: Mapping[str, Any]) -> str:
    """Return the name of the run that a record names as its parent."""
    name = str(parent.get("name", parent.get("run", "?")))
    return name.rstrip("/").rpartition("/")[2]


def seconds_left(timeline: Timeline, steps: int | None) -> float | None:
    """Estimate the seconds to the end, measurements and checkpoints included; `None` when there is too little to see.

    Goes by the clock over the newest steps; pauses are cut short, and a clock that went back is left out.

    Args:
        timeline: The fold of all events.
        steps: Steps in all.
    """
    points = timeline.steps
    moments = points.columns.get("time")
    if steps is None or moments is None or len(points.steps) < MIN_STEPS:
        return None
    recent = np.array(moments[-1 - SEEN_STEPS :])
    took = np.maximum(np.diff(recent), 0.0)
    took = np.minimum(took, 20 * np.median(took))
    per_step = float(took.sum()) / (points.steps[-1] - points.steps[-len(recent)])
    return max(0, steps - timeline.step) * per_step if math.isfinite(per_step) and per_step > 0 else None
