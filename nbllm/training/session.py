"""One turn of a trainer at a run: what our loop, a loop that is not ours, and transformers' Trainer have in common."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nbllm.core.errors import RefusedError
from nbllm.runs import checkpoint as checkpoints
from nbllm.runs.checkpoint import CheckpointInfo
from nbllm.runs.commands import CommandInbox
from nbllm.runs.lock import TrainerLock
from nbllm.runs.rulebook import recorded_rules
from nbllm.runs.settings import Setting, declared_limits
from nbllm.runs.store import read_record
from nbllm.runs.timeline import Timeline, read_timeline
from nbllm.training.journal import Journal
from nbllm.training.state import TrainState, weights_digest
from nbllm.training.steering import Recorded, Steering
from nbllm.training.watch import Watch

POLL_SECONDS = 0.02  # how often a paused run looks for commands
SAVE_SECONDS = 0.5  # how often a full disk is tried again at the end

End = tuple[str, str | None]  # "finished", "stopped" or "failed", and why


class Session(ABC):
    """A trainer's turn at a run directory: it alone trains it, obeys commands, and records what happens.

    A subclass trains, says what a checkpoint holds, and calls `boundary` between its steps.

    Args:
        path: The run directory.
        where: "thread", "process" or "loop", for the record.
    """

    settings: Sequence[Setting]
    metrics: frozenset[str] | None = None  # what rules can look at, where that is known beforehand
    state: TrainState
    steering: Steering
    keep_checkpoints: int

    def __init__(self, path: Path, *, where: str) -> None:
        self.path = path
        self.where = where
        self.record = read_record(path)
        self.cannot = declared_limits(self.record)
        self.journal = Journal(path)
        self.inbox = CommandInbox(path)
        self.num_actions = 0
        self.exit_reason: str | None = None  # set from outside: end at the next step boundary
        self._lock = TrainerLock(path)
        self._claimed = self._begun = False
        self._saved: TrainState | None = None
        self._base: CheckpointInfo | None = None  # the newest checkpoint of the live line

    # -- what a subclass says -----------------------------------------------------------------------------------

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Write what a checkpoint holds beside `state`."""

    @abstractmethod
    def read(self, folder: Path) -> None:
        """Put back what `write` wrote; `state` is that of the checkpoint already."""

    def why_not_save(self) -> str | None:
        """Return why there should be no checkpoint of this state, or `None`."""
        return None

    def publish(self, *, wait: bool = False) -> None:  # noqa: B027 (most have nobody to hand them to)
        """Hand the weights of a new checkpoint on to whom they concern."""

    def validate(self) -> None:
        """Measure on held-out text."""
        raise RefusedError("this loop cannot evaluate")

    def sample(self, prompt: str = "", max_new_tokens: int | None = None, **asked: Any) -> None:
        """Let the model continue a prompt."""
        raise RefusedError("this loop cannot sample")

    def check_patterns(self, patterns: Sequence[str]) -> None:
        """Raise `UserError` for name patterns that match no part of the model."""
        raise RefusedError("this loop cannot freeze parts")

    def set_frozen(self, patterns: tuple[str, ...]) -> None:
        """Freeze just the parts that match `patterns`."""
        raise RefusedError("this loop cannot freeze parts")

    # -- what steering may ask for ------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Steps taken on the live line."""
        return self.state.step

    @property
    def values(self) -> Mapping[str, Any]:
        """The settings as they are."""
        return self.state.values

    @property
    def frozen(self) -> tuple[str, ...]:
        """The patterns of what is frozen."""
        return self.state.frozen

    def emit(self, kind: str, *, step: int | None = None, **fields: Any) -> None:
        """Record an event at this step."""
        at = self.step if step is None else step
        self.journal.emit(kind, step=at, **fields)
        if kind in ("step", "evaluation"):
            self.steering.watch.see(kind, at, fields)

    def set_values(self, values: dict[str, Any]) -> None:
        """Change settings from the next step on."""
        self.change(values={**self.state.values, **values})

    def save(self) -> None:
        """Write a checkpoint of this step, unless there is one; a full disk is a warning, not the end.

        Raises:
            RefusedError: The state is not fit to be saved, or the disk did not take it.
        """
        self.steering.repeat_due()  # a checkpoint holds what was recorded up to its step
        if self._saved == self.state:
            return
        reason = self.why_not_save()
        if reason is not None:
            raise RefusedError(reason)
        self.store(self.write)

    def store(self, fill: Any) -> None:
        """Write a checkpoint of this step with what `fill` writes into its folder.

        Raises:
            RefusedError: The disk did not take it.
        """
        began = time.perf_counter()
        try:
            info = checkpoints.save(
                self.path, self.step, fill, {**self.state.to_dict(), "num_actions": self.num_actions}
            )
        except OSError as error:
            raise RefusedError(f"the checkpoint could not be written: {error.strerror or error}") from error
        self._saved, self._base = self.state, info
        self.emit("checkpoint", path=info.name, bytes=info.bytes, seconds=time.perf_counter() - began)
        checkpoints.prune(self.path, keep=self.keep_checkpoints)
        self.publish()

    def save_or_warn(self) -> None:
        """Write a checkpoint, where this loop can; if it cannot be done now, say so and go on."""
        if "save" in self.cannot:
            return
        try:
            self.save()
        except RefusedError as error:
            self.emit("warning", text=error.what)

    def rewind(self, step: int) -> dict[str, Any]:
        """Go back to the newest checkpoint at or before `step`: weights, optimizer, data, settings, all.

        Raises:
            RefusedError: There is none, or it is damaged.
        """
        on_branch = self.timeline().on_branch
        target, problems = checkpoints.newest_good(self.path, lambda c: c.step <= step and on_branch(c))
        for problem in problems:
            self.emit("warning", text=problem)
        if target is None:
            raise RefusedError(f"there is no good checkpoint at or before step {step}")
        self.restore(target)
        return {"to": target.step, "keep": target.num_actions, "asked": step}

    # -- the turn -----------------------------------------------------------------------------------------------

    def claim(self, patience: float = 0.0) -> None:
        """Make this trainer the run's own; whoever starts a thread calls this first, to hear the error.

        Args:
            patience: Seconds to wait for another to let go.

        Raises:
            RunError: Somebody else trains the run, or its folder cannot be written.
        """
        if self._claimed:
            return
        self._lock.timeout = patience
        self._lock.acquire()
        try:
            self.journal.open()
        except BaseException:
            self._lock.release()
            raise
        self._claimed = True

    def begin(
        self,
        timeline: Timeline,
        base: CheckpointInfo | None,
        problems: Iterable[str] = (),
        choices: dict[str, Any] | None = None,
    ) -> None:
        """Take the run up from a checkpoint, or without one from `state`; record that, and what was odd about it."""
        if base is not None:
            self.restore(base)
        replay = self.record.get("replay")
        missing = timeline.pending_after(base.num_actions, base.step) if base is not None else []
        self.num_actions = timeline.num_actions
        self.steering = Steering(
            self,
            Watch(timeline, self.step, blind=replay is not None),
            to_repeat=[Recorded(a.step, a.action, a.args, a.actor) for a in missing],
            # a replay's actions that are not yet in its own log
            script=None if replay is None else [Recorded(**e) for e in replay["script"]][self.num_actions :],
        )
        self._begun = True
        name = None if base is None else base.name
        self.journal.start(step=self.step, where=self.where, checkpoint=name, choices=choices)
        for problem in problems:
            self.emit("warning", text=problem)

    def boundary(self) -> End | None:
        """Obey what was asked, wait while paused, and return how the run ends here, if it does."""
        self.steering.at_boundary()
        while self.is_held():
            time.sleep(POLL_SECONDS)
            self.steering.at_boundary()
        if self.exit_reason or self.steering.stop_reason:
            return "stopped", self.exit_reason or self.steering.stop_reason
        steps = self.values.get("steps")
        return ("finished", None) if steps is not None and self.step >= steps else None

    def is_held(self) -> bool:
        """Whether no step is to be taken now: paused, or the disk does not take what was done; a stop ends that."""
        held = self.steering.paused or not self.journal.flush()
        return held and not (self.exit_reason or self.steering.stop_reason)

    def finish(self, end: str, reason: str | None) -> None:
        """Leave the last checkpoint, and record the end."""
        if end == "failed" and self._base is not None:
            self.restore(self._base)  # the weights that are left are those of the last good checkpoint
        elif end != "failed" and "save" not in self.cannot:
            problem = self._save_at_end(patient=end == "finished")
            if problem is not None:  # not "finished": what is not saved can be taken up again
                end, reason = "stopped", f"{reason or 'all steps are taken'}, but {problem}"
        self.publish(wait=True)
        self.record_end(end, reason)

    def record_end(self, end: str, reason: str | None) -> None:
        """Answer what was asked too late, and record the end."""
        self.steering.refuse_rest(f"the run has {end}")
        digest = None if self._base is None else weights_digest(self._base.path)
        self.journal.end(step=self.step, state=end, reason=reason, digest=digest)

    def fail(self, error: BaseException) -> None:
        """Record that an error ended the run, perhaps before it began."""
        self.journal.fail(error, step=self.step if self._begun else 0)

    def release(self) -> None:
        """Let go of the run."""
        self.journal.close()
        self._lock.release()

    def restore(self, info: CheckpointInfo) -> None:
        """Go to a checkpoint."""
        self.state = TrainState.read(info.path)
        self.read(info.path)
        self._saved, self._base = self.state, info

    def change(self, **changes: Any) -> None:
        """Change the state."""
        self.state = self.state.replace(**changes)

    def timeline(self) -> Timeline:
        """Return the fold of all that was recorded so far."""
        return read_timeline(self.path, recorded_rules(self.record))

    def _save_at_end(self, *, patient: bool) -> str | None:
        """Write the last checkpoint; `patient`, hold the run until the disk takes it. Return what prevented it."""
        warned = False
        while True:
            try:
                self.save()
            except RefusedError as error:
                if not warned:
                    self.emit("warning", text=error.what)
                warned = True
                asked = self.exit_reason or self.steering.stop_reason
                if not patient or asked or self.why_not_save() is not None:
                    return error.what
                time.sleep(SAVE_SECONDS)
                self.steering.at_boundary()
            else:
                return None
