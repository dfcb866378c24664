"""A trainer's session: what our loop, a loop of the user's own, and transformers' Trainer have in common.

What happens beside the steps is decided on rank 0 (`decider`), carried out on every rank (`applying`), and recorded on
rank 0 (`journal`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nbllm.core.errors import RefusedError
from nbllm.core.terminal import say
from nbllm.distributed.ranks import OneRank, Ranks, from_rank_zero
from nbllm.runs import checkpoint as checkpoints
from nbllm.runs.actions import action_of, changes_state, recordable
from nbllm.runs.checkpoint import CheckpointInfo
from nbllm.runs.commands import CommandInbox
from nbllm.runs.lock import TrainerLock
from nbllm.runs.presence import GONE, Presence
from nbllm.runs.process import this_process
from nbllm.runs.rulebook import recorded_rules
from nbllm.runs.settings import Setting, declared_limits
from nbllm.runs.store import read_record
from nbllm.runs.timeline import Timeline, read_timeline
from nbllm.training.applying import apply
from nbllm.training.checkpoint_writer import CheckpointWriter, Contents, RankZeroWriter
from nbllm.training.checks import refusal
from nbllm.training.decider import Decider
from nbllm.training.digests import weights_digest
from nbllm.training.journal import Journal, SilentJournal
from nbllm.training.steering_decisions import (
    Decision,
    DoWork,
    EndRun,
    TakeAction,
    TakeStep,
    from_plain,
    to_plain,
)
from nbllm.training.train_state import TrainState


@dataclasses.dataclass(frozen=True)
class _Saving:
    """A checkpoint that is being written: of which state, and since when."""

    state: TrainState
    began: float


class Session(ABC):
    """One trainer's session with a run directory: it alone trains the run, obeys commands, and records what happens.

    A subclass trains, says what a checkpoint holds, and calls `boundary` between its steps.

    Args:
        path: The run directory.
        where: "thread", "process" or "loop", for the record.
        ranks: The processes that train the run together.
        writer: Writes the checkpoints; rank 0 does when not given.
        owner: The process that holds the run for its ranks and records what ends them, as `this_process` describes
            it; None: rank 0 does both.

    Attributes:
        paused: Whether the run waits until it is resumed or stopped.
        stop_reason: Why the run is to stop at the next step boundary, or `None`.
        exit_reason: The same, set from outside: by a signal handler, or when the kernel shuts down.
    """

    settings: Sequence[Setting]
    metrics: frozenset[str] | None = None  # what rules can look at, where that is known beforehand
    state: TrainState
    keep_checkpoints: int

    def __init__(
        self,
        path: Path,
        *,
        where: str,
        ranks: Ranks | None = None,
        writer: CheckpointWriter | None = None,
        owner: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.owner = owner
        self.where = where
        self.ranks = OneRank() if ranks is None else ranks
        self.writer = RankZeroWriter(self.ranks) if writer is None else writer
        self.record = read_record(path)
        self.presence = Presence(path, self.record)
        self.cannot = declared_limits(self.record)
        self.journal = Journal(path) if self.ranks.rank == 0 else SilentJournal(path)
        self.inbox = CommandInbox(path)
        self.num_actions = 0
        self.paused = False
        self.stop_reason: str | None = None
        self.exit_reason: str | None = None
        self.decider: Decider | None = None  # rank 0's
        self._lock = TrainerLock(path)
        self._claimed = self._begun = False
        self._saved: TrainState | None = None
        self._saving: _Saving | None = None
        self._base: CheckpointInfo | None = None  # the newest checkpoint on the current branch

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

    def publish(self, *, wait: bool = False) -> None:  # noqa: B027 (most sessions hand them to no one)
        """Hand the weights of a new checkpoint to whoever shows or uses them."""

    def due(self) -> Iterator[DoWork]:
        """Yield what is due after this step: evaluations, samples, checkpoints; called on rank 0 alone."""
        return iter(())

    def validate(self) -> None:
        """Measure on held-out text."""
        raise RefusedError("this loop cannot evaluate")

    def sample(self, prompt: str = "", max_new_tokens: int | None = None, **asked: Any) -> None:
        """Let the model continue a prompt."""
        raise RefusedError("this loop cannot sample")

    def profile(self, steps: int = 3) -> None:
        """Watch what the ranks do in the next steps."""
        raise RefusedError("this loop cannot be profiled")

    def check_values(self, values: Mapping[str, Any]) -> None:
        """Raise `RefusedError` for values of settings that cannot be set now, though they are in range."""
        if values.get("steps", self.step) < self.step:
            raise RefusedError(f"{values['steps']} steps are fewer than the {self.step} already taken")

    def frozen_after(self, action: str, patterns: Sequence[str]) -> tuple[str, ...]:
        """Return the patterns of what is frozen after `freeze` or `unfreeze`; raise `UserError` where it cannot be."""
        raise RefusedError("this loop cannot freeze parts")

    def set_frozen(self, patterns: tuple[str, ...]) -> None:
        """Freeze just the parts that the patterns freeze."""
        raise RefusedError("this loop cannot freeze parts")

    # -- what actions change ------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Steps taken on the current branch."""
        return self.state.step

    @property
    def reached(self) -> int:
        """Steps taken, for the record; 0 as long as the session has not begun."""
        return self.step if self._begun else 0

    @property
    def values(self) -> Mapping[str, Any]:
        """The settings as they are."""
        return self.state.values

    @property
    def frozen(self) -> tuple[str, ...]:
        """The patterns of what is frozen."""
        return self.state.frozen

    def set_values(self, values: dict[str, Any]) -> None:
        """Change settings from the next step on."""
        self.change(values={**self.state.values, **values})

    def save(self, *, wait: bool = True) -> None:
        """Write a checkpoint of this step, unless there is one; a full disk is a warning, not the end.

        Args:
            wait: Whether it is to be complete; else the writer may go on with it while training does.

        Raises:
            RefusedError: The state is not fit to be saved, or the disk did not take it.
        """
        if self._saving is not None and self._saving.state == self.state:
            if wait:
                self.complete_save()
            return
        if self._saved == self.state:
            return
        if (reason := self.why_not_save()) is not None:
            raise RefusedError(reason)
        self.store(self.contents(), wait=wait)

    def contents(self) -> Contents:
        """Return what a checkpoint of this state holds beside the state itself."""
        return Contents(self.write)

    def store(self, contents: Contents, *, wait: bool = True) -> None:
        """Write a checkpoint of this step; the one before it is completed first.

        Raises:
            RefusedError: The disk did not take it, or the run's folder is gone.
        """
        self._complete_or_warn()
        if from_rank_zero(self.ranks, self.presence.is_gone):
            raise RefusedError(f"there is no checkpoint: {GONE}")
        began = time.perf_counter()
        state = {**self.state.to_dict(), "num_actions": self.num_actions}
        self.writer.begin(self.path, self.step, contents, state)
        self._saving = _Saving(self.state, began)
        if wait or not self.writer.is_asynchronous:
            self.complete_save()

    def is_save_written(self) -> bool:
        """Return whether a checkpoint was begun whose parts this rank has written; `complete_save` is then quick."""
        return self._saving is not None and self.writer.is_written()

    def complete_save(self) -> None:
        """Wait for the checkpoint that is being written, if one is, and record it.

        Raises:
            RefusedError: The disk did not take it.
        """
        saving, self._saving = self._saving, None
        if saving is None:
            return
        info = self.writer.finish()
        self._saved, self._base = saving.state, info
        seconds = time.perf_counter() - saving.began
        self.emit("checkpoint", step=info.step, path=info.name, bytes=info.bytes, seconds=seconds)
        if self.ranks.rank == 0:
            checkpoints.prune(self.path, keep=self.keep_checkpoints)
        self.publish()

    def save_or_warn(self, *, wait: bool = True) -> None:
        """Write a checkpoint, where this loop can; if it cannot be done now, say so and go on."""
        if "save" in self.cannot:
            return
        try:
            self.save(wait=wait)
        except RefusedError as error:
            self.emit("warning", text=error.what)

    def _complete_or_warn(self) -> None:
        try:
            self.complete_save()
        except RefusedError as error:
            self.emit("warning", text=error.what)

    def rewind(self, checkpoint: str) -> None:
        """Go back to a checkpoint: weights, optimizer, data, settings, all.

        Args:
            checkpoint: Its folder's name.
        """
        self.restore(checkpoints.named(self.path, checkpoint))
        if self.decider is not None:
            self.decider.went_back(self.step)

    def restore(self, info: CheckpointInfo) -> None:
        """Go to a checkpoint."""
        self._complete_or_warn()
        self.state = TrainState.read(info.path)
        self.read(info.path)
        self._saved, self._base = self.state, info

    def change(self, **changes: Any) -> None:
        """Change the state."""
        self.state = self.state.replace(**changes)

    # -- the session --------------------------------------------------------------------------------------------

    def claim(self, patience: float = 0.0) -> None:
        """Make this trainer the run's own; whoever starts a thread calls this first, to hear the error.

        Args:
            patience: Seconds to wait for another trainer to release it.

        Raises:
            RunError: Somebody else trains the run, or its folder cannot be written.
        """
        if self._claimed or self.ranks.rank > 0:
            return
        if self.owner is None:
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
        timeline: Timeline | None,
        base: CheckpointInfo | None,
        problems: Iterable[str] = (),
        choices: dict[str, Any] | None = None,
    ) -> None:
        """Take the run up from a checkpoint, or without one from `state`; record that, and its problems.

        Args:
            timeline: The run so far; `None` on all ranks but the first.
            base: The checkpoint.
            problems: What was wrong with newer ones.
            choices: What the run is fixed to, for the record.
        """
        if base is not None:
            self.restore(base)
        self.num_actions = from_rank_zero(self.ranks, lambda: 0 if timeline is None else timeline.num_actions)
        if timeline is not None:
            self.decider = Decider.of(self, timeline, base)
        self._begun = True
        name = None if base is None else base.name
        process = this_process() if self.owner is None else self.owner
        self.journal.start(
            step=self.step, process=process, where=self.where, checkpoint=name, choices=choices
        )
        for problem in problems:
            self.emit("warning", text=problem)

    def boundary(self) -> EndRun | None:
        """Obey what was asked, wait while paused, and return how the run ends here, if it does."""
        return self.carry_out(Decider.before_step)

    def finish_step(self) -> None:
        """Do what is due after a step, and what the rules ask."""
        self.carry_out(Decider.after_step)

    def carry_out(self, decide: Callable[[Decider], Iterator[Decision]]) -> EndRun | None:
        """Carry out on every rank what rank 0 decides, one decision after the other.

        Args:
            decide: What rank 0 asks its decider; each decision sees what came of those before.

        Returns:
            How the run ends, if that was decided; `None` to go on.
        """
        decisions = None if self.decider is None else decide(self.decider)

        def next_one() -> list[Any] | None:
            assert decisions is not None
            return to_plain(next(decisions, None))

        while (decision := from_plain(from_rank_zero(self.ranks, next_one))) is not None:
            if isinstance(decision, EndRun):
                return decision
            if isinstance(decision, TakeStep):
                return None
            if isinstance(decision, DoWork):
                self._do(decision)
            else:
                self._perform(decision)
        return None

    def finish(self, end: EndRun) -> None:
        """Leave the last checkpoint, and record the end."""
        self._complete_or_warn()
        if end.state == "failed" and self._base is not None:
            self.restore(self._base)  # the weights that are left are those of the last good checkpoint
        elif not end.save:
            self._say_if_gone()
        elif end.state != "failed" and "save" not in self.cannot:
            problem = self._save_at_end(patient=end.state == "finished")
            if problem is not None:  # not "finished": what is not saved can be taken up again
                reason = f"{end.reason or 'all steps are taken'}, but {problem}"
                end = EndRun(state="stopped", reason=reason)
        self.publish(wait=True)
        self.record_end(end)

    def release(self) -> None:
        """Release the run."""
        self.journal.close()
        if self._claimed:
            self._lock.release()

    def timeline(self) -> Timeline:
        """Return the fold of all that was recorded so far."""
        return read_timeline(self.path, recorded_rules(self.record))

    # -- recording, which only rank 0 does -----------------------------------------------------------------------

    def emit(self, kind: str, *, step: int | None = None, **fields: Any) -> None:
        """Record an event at this step."""
        at = self.step if step is None else step
        kept = self.journal.emit(kind, step=at, **fields)
        if self.decider is not None and kind in ("step", "evaluation"):
            self.decider.watch.see(kind, at, kept)

    def record_action(self, asked: TakeAction, outcome: str, reason: str, *, step: int | None = None) -> None:
        """Record what became of an action: the event that whoever sent the command waits for."""
        at = self.step if step is None else step
        event = asked.to_event(outcome, reason)
        self.emit("action", step=at, **event)
        if self.decider is not None:
            self.decider.watch.book.take(action_of({"step": at, "time": 0.0, **event}))

    def refuse(self, asked: TakeAction, reason: str) -> None:
        """Record that an action was refused."""
        self.record_action(asked.replace(args=recordable(asked.args)), "refused", reason)

    def record_end(self, end: EndRun) -> None:
        """Answer what was asked too late, and record the end."""
        if self.decider is not None:
            self.decider.refuse_rest(f"the run has {end.state}")
        digest = None
        with contextlib.suppress(OSError, ValueError):  # the folder may be gone
            digest = None if self._base is None else weights_digest(self._base.path)
        self.journal.end(step=self.step, state=end.state, reason=end.reason, digest=digest)

    def fail(self, error: BaseException) -> None:
        """Record that an error ended the run, perhaps before it began; where ranks have an owner, that does it."""
        self._say_if_gone()
        if self.owner is None:
            self.journal.fail(error, step=self.reached)

    def _say_if_gone(self) -> None:
        """Say what no event can say any more."""
        if self.ranks.rank == 0 and self.presence.is_gone():
            say(f"{self.path.name} has ended at step {self.step}: {GONE}.", error=True)

    # -- how ----------------------------------------------------------------------------------------------------

    def _do(self, due: DoWork) -> None:
        work: dict[str, Callable[..., None]] = {
            "evaluate": self.validate,
            "sample": self.sample,
            "save": functools.partial(self.save_or_warn, wait=False),
            "complete_save": self._complete_or_warn,
        }
        work[due.work](**due.args)

    def _perform(self, decision: TakeAction) -> None:
        """Carry out an action, and record what became of it."""
        if decision.recorded:
            apply(self, decision)
            return
        step = self.step
        try:
            args = apply(self, decision)
        except Exception as error:
            self.refuse(decision, refusal(decision.action, error))
        else:
            self.record_action(decision.replace(args=args), "applied", decision.reason, step=step)
            self.num_actions += changes_state(decision.action)

    def _save_at_end(self, *, patient: bool) -> str | None:
        """Write the last checkpoint; `patient`, hold the run until the disk takes it. Return what prevented it."""
        warned = False
        while True:
            try:
                self.save()
                return None
            except RefusedError as error:
                if not warned:
                    self.emit("warning", text=error.what)
                warned = True
                if not patient or self.why_not_save() is not None:
                    return error.what
                if self.carry_out(Decider.before_next_try) is not None:
                    return error.what
