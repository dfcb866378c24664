"""The current branch of a run: what its events mean once rewinds and resumptions are taken into account.

A **state action** is an applied action that changes the further course (`ActionType.changes_state`): `set`, `freeze`,
`unfreeze`, `rewind`.
They are numbered in the order of their events. A checkpoint records how many there were (`num_actions`). From
that follows everything that rewinding, resuming and replaying need:

- a rewind to a checkpoint undoes the state actions that the checkpoint does not contain;
- what is left is *effective*: all but the rewinds, each at the step where it was applied;
- a run that resumes from a checkpoint applies again, at their steps, the effective actions that the
  checkpoint does not contain (`pending_after`). It writes no new events for them;
- points after the step that a rewind or a resumption went back to are superseded.

For this to be exact the loop, at a step boundary, applies what is pending for that step before it saves a
checkpoint.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
import operator
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nbllm.core.errors import RunError, nearest
from nbllm.runs.actions import Action, action_of, changes_state
from nbllm.runs.events import MAX_COUNT, Event, EventReader, is_count, is_number
from nbllm.runs.rulebook import RuleBook, recorded_rules
from nbllm.runs.rules import Rule

USUAL = frozenset(
    {"loss", "bits_per_byte", "lr", "grad_norm", "tokens", "tokens_per_second", "memory", "seconds"}
)
MAX_COLUMNS = 64  # per kind; a writer that invents names must not exhaust memory
KEPT = 10_000  # of each list of other events, the newest


@dataclasses.dataclass
class SessionState:
    """Where the newest session of a run stands.

    Args:
        number: How many sessions began.
        start: Its `start` event.
        end: Its `end` event, if it ended.
        paused_at: The step at which it was paused, while it is.
        last_time: When its newest event was written.
        step: Steps done on the current branch.
        loss: The newest training loss.
    """

    number: int = 0
    start: Event | None = None
    end: Event | None = None
    paused_at: int | None = None
    last_time: float | None = None
    step: int = 0
    loss: float | None = None

    def take_steps(self, events: list[Event]) -> None:
        """Take `step` events into account."""
        self.last_time, self.step = events[-1]["time"], events[-1]["step"]
        self.loss = next((e["loss"] for e in reversed(events) if is_number(e.get("loss"))), self.loss)
        if self.paused_at is not None and any(event["step"] > self.paused_at for event in events):
            self.paused_at = None

    def take(self, event: Event) -> None:
        """Take the next event into account."""
        kind, step = event["kind"], event["step"]
        self.last_time = event["time"]
        if kind == "step":
            self.take_steps([event])
        elif kind == "start":
            self.number += 1
            self.start, self.end, self.paused_at = event, None, None
            self.step = count(event.get("from_step"), step)
        elif kind == "end":
            self.end = event
        elif kind == "action" and event.get("outcome") == "applied":
            action = event.get("action")
            if action == "pause":
                self.paused_at = step
            elif action == "resume":
                self.paused_at = None
            elif action == "rewind":
                self.step = rewound_to(event)
                if self.paused_at is not None:
                    self.paused_at = self.step


class Points:
    """The numbers of one kind of event on the current branch, as columns over steps that rise."""

    def __init__(self) -> None:
        self.steps = array("q")
        self.columns: dict[str, array[float]] = {}

    def add(self, events: list[Event]) -> None:
        """Append the numbers of events; a step that was there already supersedes it and what followed."""
        steps = [event["step"] for event in events]
        rising = all(map(operator.lt, steps, steps[1:]))
        if not rising and len(events) > 1:
            for event in events:
                self.add([event])
            return
        if self.steps and steps[0] <= self.steps[-1]:
            self.cut(steps[0] - 1)
        num_before = len(self.steps)
        self.steps.extend(steps)
        for name in self._names(events):
            try:
                values = list(map(operator.itemgetter(name), events))  # twice as quick as `get`
            except KeyError:
                values = [event.get(name) for event in events]
            column = self.columns.get(name)
            numbers = _numbers(values)
            if column is None:
                column = self.columns[name] = array("d", [math.nan]) * num_before
            column.extend(numbers if numbers is not None else [math.nan] * len(values))

    def _names(self, events: list[Event]) -> list[str]:
        """Return the names of the columns there are, and of new ones, as far as there is a place for them."""
        names = dict.fromkeys(self.columns)
        known = {"kind", *names}
        for event in events:
            if not known.issuperset(event):
                for name in event:
                    is_new = name not in known and is_number(event[name])
                    if is_new and (len(names) < MAX_COLUMNS or name in USUAL):
                        names[name] = None
                        known.add(name)
        return list(names)

    def cut(self, step: int) -> None:
        """Drop the points after `step`."""
        end = bisect.bisect_right(self.steps, step)
        del self.steps[end:]
        for column in self.columns.values():
            del column[end:]


class Timeline:
    """Folds the events of a run, in the order of `EventReader`, into its current branch.

    Args:
        events: To begin with; `extend` takes more.
        rules: Those that the run was started with.
    """

    def __init__(self, events: Iterable[Event] = (), *, rules: Iterable[Rule] = ()) -> None:
        self.session = SessionState()
        self.starts: list[Event] = []
        self.actions: list[Action] = []
        self.state_actions: list[Action] = []
        self.effective: list[Action] = []
        self.steps = Points()
        self.evaluations = Points()
        self.rules = RuleBook(rules)
        self.samples: list[Event] = []
        self.checkpoints: list[Event] = []
        self.warnings: list[Event] = []
        self.num_warnings = 0
        self.others: list[Event] = []
        self.ranks: Event | None = None  # the newest report of the processes that train it
        self._answers: dict[str, Action] = {}
        self.extend(events)

    def extend(self, events: Iterable[Event]) -> None:
        """Take further events into account."""
        for kind, group in itertools.groupby(events, key=operator.itemgetter("kind")):
            several = list(group)
            if kind == "step":  # most events by far
                self.steps.add(several)
                self.session.take_steps(several)
            elif kind == "evaluation":
                self.evaluations.add(several)
                self.session.take(several[-1])
            else:
                for event in several:
                    self._take(kind, event)

    def _take(self, kind: str, event: Event) -> None:
        self.session.take(event)
        if kind == "action":
            self._act(event)
        elif kind == "start":
            self.starts.append(event)
            self.ranks = None  # there may be others
            self._cut(self.session.step)
        elif kind == "sample":
            _keep(self.samples, event)
        elif kind == "checkpoint":
            _keep(self.checkpoints, event)
        elif kind == "warning":
            self.num_warnings += 1
            _keep(self.warnings, event)
        elif kind == "ranks":
            self.ranks = event
        elif kind not in ("heartbeat", "end"):
            _keep(self.others, event)

    @property
    def step(self) -> int:
        """Steps done on the current branch."""
        return self.session.step

    @property
    def num_actions(self) -> int:
        """How many state actions were applied so far: what a checkpoint records."""
        return len(self.state_actions)

    def pending_after(self, num_actions: int, step: int) -> list[Action]:
        """Return the effective actions that a checkpoint does not contain, in the order to apply them.

        Args:
            num_actions: As the checkpoint recorded it.
            step: The checkpoint's step.
        """
        missing = [a for a in self.effective if a.step > step or (a.step == step and a.index >= num_actions)]
        return sorted(missing, key=lambda action: (action.step, action.index))

    def on_branch(self, checkpoint: Any) -> bool:
        """Say whether a checkpoint (anything with `step` and `num_actions`) lies on the current branch."""
        for action in self.state_actions[checkpoint.num_actions :]:
            if action.action == "rewind" and count(action.args.get("to"), 0) < checkpoint.step:
                return False
        # After a fall back to an older checkpoint an action may have been applied before this one's step.
        return not any(a.index >= checkpoint.num_actions and a.step < checkpoint.step for a in self.effective)

    def answer(self, command_id: str) -> Action | None:
        """Return what became of a command: applied or refused; `None` while it is open."""
        return self._answers.get(command_id)

    def history(self, metric: str = "loss") -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return (steps, values) of a metric on the current branch, as int64 and float64 arrays of one length.

        Args:
            metric: A number of the `step` events ("loss", "lr", "tokens_per_second", ...), or of the
                evaluations ("evaluation.loss", "evaluation.bits_per_byte").

        Raises:
            RunError: No event has that number.
        """
        prefix = "evaluation."
        points = self.evaluations if metric.startswith(prefix) else self.steps
        name = metric.removeprefix(prefix)
        if name not in points.columns:
            if name in ("loss", "bits_per_byte") or not points.steps:
                return np.empty(0, np.int64), np.empty(0)
            raise RunError(f"This run has no metric {metric!r}.", hint=nearest(metric, self.metrics))
        steps = np.array(points.steps, dtype=np.int64)
        values = np.array(points.columns[name], dtype=np.float64)
        return steps, values

    @property
    def metrics(self) -> list[str]:
        """The names that `history` takes."""
        known = [name for name in self.steps.columns if name not in ("time", "step")]
        return known + [
            f"evaluation.{name}" for name in self.evaluations.columns if name not in ("time", "step")
        ]

    def _act(self, event: Event) -> None:
        index = -1
        if event.get("outcome") == "applied" and changes_state(event.get("action")):
            index = len(self.state_actions)
        action = action_of(event, index)
        _keep(self.actions, action)
        self.rules.take(action)
        if action.outcome != "pending":
            self._answers[action.id] = action
        if index < 0:
            return
        self.state_actions.append(action)
        if action.action == "rewind":
            to, kept = rewound_to(event), count(action.args.get("keep"), MAX_COUNT)
            self.effective = [a for a in self.effective if a.index < kept and a.step <= to]
            self._cut(to)
        else:
            self.effective.append(action)

    def _cut(self, step: int) -> None:
        self.steps.cut(step)
        self.evaluations.cut(step)


def begin_timeline(record: Mapping[str, Any]) -> Timeline:
    """Return the timeline of a run without events: a fork is where it branched off, until its first event says more."""
    timeline = Timeline(rules=recorded_rules(record))
    parent = record.get("parent")
    if isinstance(parent, dict):
        timeline.session.step = count(parent.get("step"), 0)
    return timeline


def read_timeline(folder: Path | str, rules: Iterable[Rule] = ()) -> Timeline:
    """Return the fold of all that is recorded of the run in `folder` so far.

    Args:
        folder: The run's folder.
        rules: Those that the run was started with.
    """
    return Timeline(EventReader(folder).poll(), rules=rules)


def rewound_to(event: Event) -> int:
    """Return the step that an applied rewind went back to."""
    args = event.get("args")
    return count(args.get("to") if isinstance(args, dict) else None, event["step"])


def count(value: Any, default: int) -> int:
    """Return `value` if it is a count, else `default`: events may hold anything."""
    return value if is_count(value) else default


def _numbers(values: list[Any]) -> list[float] | None:
    """Return values as numbers, NaN for what is none; `None` when none of them is."""
    if {float, int}.issuperset(map(type, values)) and -1e300 < min(values) and max(values) < 1e300:
        if not math.isnan(sum(values)):
            return values
    numbers = [float(value) if is_number(value) else math.nan for value in values]
    return None if all(map(math.isnan, numbers)) else numbers


def _keep(events: list[Any], event: Any) -> None:
    events.append(event)
    if len(events) > 2 * KEPT:
        del events[:-KEPT]
