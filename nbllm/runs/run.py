"""`Run`: the handle of a run directory, from any kernel, while the run goes on or years after."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nbllm.core.errors import RunError, UserError
from nbllm.runs import checkpoint as checkpoint_files
from nbllm.runs.checkpoint import CheckpointInfo
from nbllm.runs.commands import check_actor
from nbllm.runs.events import Event, EventReader, is_count
from nbllm.runs.log import RunLog
from nbllm.runs.rulebook import RuleList, RunRule
from nbllm.runs.rules import Rule, RuleAction
from nbllm.runs.settings import Settings, declared_limits
from nbllm.runs.state import LIVE, judge
from nbllm.runs.steering import WAIT, Outcome, ask, start_again
from nbllm.runs.timeline import Timeline
from nbllm.runs.waiting import wait_for

__all__ = ["Launcher", "Outcome", "Run"]


class Launcher(Protocol):
    """Starts trainers; given to a `Run` by whoever can train."""

    def resume(self, run: Run) -> object:
        """Start a new session of a run that is not live, from its newest good checkpoint."""

    def fork(self, run: Run, name: str, step: int | None, changes: dict[str, Any]) -> Run:
        """Start a new run from the checkpoint of `run` at `step` (`None`: the newest), with `changes`."""
        ...


class Run:
    """A run: its record, its events so far, and the commands that steer it.

    Shown in a cell it is a static picture of itself; `nb.attach(path)` opens any run so that it can be
    resumed and forked too. Reading never disturbs the run, and any number of handles may watch and steer it.

    Args:
        path: The run's folder.
        actor: In whose name commands are sent: "person", "rule:<name>", "agent:<name>".
        launcher: What can start a session; without one, `resume` of an ended run and `fork` are errors.

    Raises:
        RunError: There is no run at `path`.
    """

    def __init__(self, path: Path | str, *, actor: str = "person", launcher: Launcher | None = None) -> None:
        self.path = Path(path).expanduser().resolve()
        self.actor = check_actor(actor)
        self.launcher = launcher
        self._log = RunLog(self.path)

    # What it is

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.path.name

    @property
    def record(self) -> dict[str, Any]:
        """What `run.json` says."""
        return self._log.record

    @property
    def timeline(self) -> Timeline:
        """The fold of all events so far; brought up to date by each look."""
        return self._log.timeline()

    @property
    def guard(self) -> AbstractContextManager[object]:
        """Hold this while reading from `timeline` where several threads look; all that is read is of one moment."""
        return self._log.guard()

    @property
    def state(self) -> str:
        """One of starting, running, paused, finished, stopped, failed; or lost: it ended without a word."""
        session, grew = self._log.session()
        return judge(session, self.path, self.record, grew) if self._log.exists else "lost"

    @property
    def is_live(self) -> bool:
        """Whether a trainer is there to take commands."""
        return self.state in LIVE

    @property
    def step(self) -> int:
        """Optimizer steps done, on the live line."""
        return self.timeline.step

    @property
    def steps(self) -> int | None:
        """Optimizer steps in all: as the record says, or as it was set since; `None` when neither tells."""
        changed = [a.args["steps"] for a in self.timeline.effective if is_count(a.args.get("steps"))]
        return changed[-1] if changed else self.recorded_steps

    @property
    def recorded_steps(self) -> int | None:
        """Optimizer steps in all, as they were planned at the start."""
        value = self.record.get("steps", self.config.get("steps"))
        return value if is_count(value) else None

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that the run was started with."""
        value = self.record.get("config")
        return value if isinstance(value, dict) else {}

    @property
    def parent(self) -> dict[str, Any] | None:
        """The run and the step that this one was forked from, or `None`."""
        value = self.record.get("parent")
        return value if isinstance(value, dict) else None

    @property
    def settings(self) -> Settings:
        """What `set` can change while the run goes on, and what it is now."""
        values = dict(self.config)
        for action in self.timeline.effective:
            if action.action == "set":
                values.update(action.args)
        return Settings(self._log.declared, values)

    @property
    def cannot(self) -> dict[str, str]:
        """What its loop cannot do, by action ("rewind", "evaluate", "fork", ...), with the reasons."""
        return declared_limits(self.record)

    @property
    def rules(self) -> RuleList:
        """What acts by itself when a condition holds; `run.rules["spike"].off()` switches one off."""
        with self._log.guard():
            return RuleList([RunRule(self, copy.copy(state)) for state in self.timeline.rules])

    @property
    def checkpoints(self) -> list[CheckpointInfo]:
        """The checkpoints on the disk, in the order in which they were saved."""
        return checkpoint_files.checkpoints(self.path)

    @property
    def problems(self) -> list[str]:
        """What is odd about the directory itself, in sentences; mostly nothing."""
        found = []
        if not self._log.exists:
            found.append("The run's folder is gone.")
        damaged = self._log.damaged
        if damaged:
            found.append(f"{damaged:,} damaged line{'s' if damaged > 1 else ''} of events skipped.")
        return found

    @property
    def reason(self) -> str:
        """Why the run ended, as its trainer said; "" while it goes on."""
        end = self.timeline.session.end
        return "" if end is None or end.get("reason") is None else str(end["reason"])

    def events(self, kind: str | None = None) -> list[Event]:
        """Return all events, or those of one kind, read afresh from the disk: the superseded ones too."""
        reader = EventReader(self.path)
        return [
            event for batch in reader.batches() for event in batch if kind is None or event["kind"] == kind
        ]

    def history(self, metric: str = "loss") -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return (steps, values) of a metric on the live line.

        Args:
            metric: "loss" (nats a token), "lr", "grad_norm", "tokens_per_second", "memory" (bytes),
                "seconds", ..., "evaluation.loss", "evaluation.bits_per_byte".

        Raises:
            RunError: The run has no such metric.
        """
        with self._log.guard():
            return self.timeline.history(metric)

    # Steering

    def as_actor(self, actor: str) -> Run:
        """Return another handle of the same run whose commands carry this actor."""
        other = copy.copy(self)  # shares what was read
        other.actor = check_actor(actor)
        return other

    def ask(self, action: str, *, timeout: float = WAIT, **args: Any) -> Outcome:
        """Ask the loop for any action of `nbllm.runs.actions`, by name; the methods below ask for those that are there.

        Raises:
            RefusedError: There is no such action, an argument is wrong, or the loop refused.
            RunError: The run is not live.
        """
        return ask(self, action, args, timeout)

    def pause(self, *, timeout: float = WAIT) -> Outcome:
        """Hold the run at the next step boundary."""
        return ask(self, "pause", {}, timeout)

    def resume(self, *, timeout: float = WAIT) -> Outcome:
        """Go on: from a pause; when stopped, failed or lost, from the newest good checkpoint.

        Raises:
            RunError: It has finished, or there is nothing that can start it.
        """
        state = self.state
        if state in LIVE:
            return ask(self, "resume", {}, timeout)
        if state == "finished":
            raise RunError(
                f"{self.name} has finished: there is nothing to resume.", hint="fork() goes on from it."
            )
        return start_again(self, self._can_launch("resume"), timeout)

    def stop(self, *, timeout: float = WAIT) -> Outcome:
        """End the run at the next step boundary, with a checkpoint; `resume` goes on from it."""
        return ask(self, "stop", {}, timeout)

    def save(self, *, timeout: float = WAIT) -> Outcome:
        """Write a checkpoint now."""
        return ask(self, "save", {}, timeout)

    def evaluate(self, *, timeout: float = WAIT) -> Outcome:
        """Measure on held-out text now."""
        return ask(self, "evaluate", {}, timeout)

    def sample(self, prompt: str = "", *, max_new_tokens: int = 64, timeout: float = WAIT) -> str:
        """Let the model continue a prompt now, and return its text.

        Raises:
            RunError: There was no answer in time.
            RefusedError: The run refused.
        """
        outcome = ask(self, "sample", {"prompt": prompt, "max_new_tokens": max_new_tokens}, timeout)
        text = self._sampled(outcome, prompt)
        if text is None:
            raise RunError(
                f"The sample did not come: {outcome!r}.", hint="It will be in run.events('sample')."
            )
        return text

    def _sampled(self, outcome: Outcome, prompt: str) -> str | None:
        """Return the text of the sample that answers a command: with its id, or the newest of its prompt."""
        deadline = time.monotonic() + (2.0 if outcome.outcome == "applied" else 0.0)
        while True:
            for event in reversed(self.timeline.samples):
                answers = event.get("id", outcome.id) == outcome.id and event.get("prompt") == prompt
                if answers and event["step"] == outcome.step:
                    return str(event.get("text", ""))
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.02)

    def set(self, *, timeout: float = WAIT, **values: Any) -> Outcome:
        """Change settings from the next step on, all or none: `run.set(lr=1e-3)`.

        Raises:
            RefusedError: A setting is not offered, or out of range; the message is the reason.
        """
        return ask(self, "set", values, timeout)

    def freeze(self, *patterns: str, timeout: float = WAIT) -> Outcome:
        """Stop training the parts whose names match: `run.freeze("blocks.0.*", "embedding*")`."""
        return ask(self, "freeze", {"patterns": list(patterns)}, timeout)

    def unfreeze(self, *patterns: str, timeout: float = WAIT) -> Outcome:
        """Train the parts again whose names match."""
        return ask(self, "unfreeze", {"patterns": list(patterns)}, timeout)

    def rewind(self, step: int, *, timeout: float = WAIT) -> Outcome:
        """Go back to the checkpoint at `step`, and on from there; what came after stays on record.

        Raises:
            RefusedError: There is no checkpoint at that step on the live line; the message names them.
        """
        return ask(self, "rewind", {"step": step}, timeout)

    def rule(
        self,
        rule: Rule | str,
        *,
        when: str | None = None,
        do: RuleAction | Sequence[RuleAction] | None = None,
        timeout: float = WAIT,
        **bounds: int,
    ) -> Outcome:
        """Set a rule, or replace the one of that name.

            run.rule("spike", when="loss > 1.5 * median(loss, 50)", do=[nb.rules.rewind(), nb.rules.scale(lr=0.5)])
            run.rule(nb.rules.plateau())

        Args:
            rule: Its name; or a whole rule, and nothing else.
            when: The condition; see `nbllm.runs.conditions`.
            do: What to do: functions of `nb.rules`.
            timeout: Seconds to wait for the run's answer.
            **bounds: `cooldown` and `limit`, as in `nb.rules.Rule`.

        Raises:
            UserError: It is no rule.
            RefusedError: The run takes none: it is a replay, or has too many.
        """
        if isinstance(rule, Rule):
            if when is not None or do is not None or bounds:
                raise UserError("A whole rule is given, and parts of one.", hint="run.rule(rule)")
        else:
            given = {"name": rule, "when": when, "do": do, **bounds}
            rule = Rule.from_dict({name: value for name, value in given.items() if value is not None})
        return ask(self, "rule", rule.to_dict(), timeout)

    def switch_rule(self, name: str, on: bool, *, timeout: float = WAIT) -> Outcome:
        """Switch a rule on or off: what `run.rules[name].on()` and `.off()` do."""
        return ask(self, "rule", {"name": name, "on": on}, timeout)

    def fork(self, name: str, step: int | None = None, **changes: Any) -> Run:
        """Start a new run from a checkpoint of this one, which goes on undisturbed.

        Args:
            name: The new run's name.
            step: The checkpoint's step; `None` is the newest.
            **changes: Settings and configuration that differ in the new run.

        Raises:
            RunError: There is no such checkpoint, or nothing here that can start a run.
        """
        return self._can_launch("fork").fork(self, name, step, changes)

    def _can_launch(self, verb: str) -> Launcher:
        reason = self.cannot.get("start_again" if verb == "resume" else verb)
        if reason is not None:
            raise RunError(f"{self.name} cannot {verb}: {reason}.")
        if self.launcher is None:
            raise RunError(
                f"This handle cannot {verb} {self.name}: it only watches and steers.",
                hint=f"nb.attach({str(self.path)!r}).{verb}(...) can.",
            )
        return self.launcher

    def wait(self, step: int | None = None, timeout: float | None = None, progress: bool = True) -> Run:
        """Block until the run ends, or has done `step` steps; interrupting the wait leaves the run going.

        Args:
            step: Return when so many steps are done.
            timeout: Return after so many seconds.
            progress: Print a line that says how far it is.

        Returns:
            The run itself; its `state` says whether it has ended.

        Raises:
            RunError: It failed or was lost.
        """
        wait_for(self, step, timeout, progress)
        return self

    # How it looks

    def __repr__(self) -> str:
        from nbllm.runs.snapshot import one_line

        return one_line(self)

    def _repr_html_(self) -> str:
        from nbllm.runs.snapshot import html

        with self._log.guard():
            return html(self)
