"""`Run`: the handle of a run directory, from any kernel, while the run goes on or years after."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from nbllm.core.errors import RunError, UserError
from nbllm.core.terminal import say
from nbllm.runs import managing, snapshot
from nbllm.runs.asking import WAIT, NotLiveError, Outcome, ask, start_again
from nbllm.runs.commands import check_actor
from nbllm.runs.reader import RunReader
from nbllm.runs.recorded import RecordedRun
from nbllm.runs.rule_list import RuleList, RunRule
from nbllm.runs.rules import Rule, RuleAction
from nbllm.runs.waiting import wait_for

__all__ = ["Outcome", "Run", "Starter"]


class Starter(Protocol):
    """Starts trainers; given to a `Run` by whoever can train."""

    def resume(self, run: Run) -> object:
        """Start a new session of a run that is not live, from its newest good checkpoint."""

    def fork(self, run: Run, name: str, step: int | None, changes: dict[str, Any]) -> Run:
        """Start a new run from the checkpoint of `run` at `step` (`None`: the newest), with `changes`."""
        ...

    def export(self, run: Run, path: Path | str, step: int | None) -> Path:
        """Write the model of the checkpoint of `run` at `step` (`None`: the newest) for other programs to open."""
        ...


class Run(RecordedRun):
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

    def __init__(self, path: Path | str, *, actor: str = "person", launcher: Starter | None = None) -> None:
        super().__init__(path)
        self.actor = check_actor(actor)
        self.launcher = launcher

    @property
    def rules(self) -> RuleList:
        """What acts by itself when a condition holds; `run.rules["spike"].off()` switches one off."""
        with self.guard:
            return RuleList([RunRule(copy.copy(state), self.switch_rule) for state in self.timeline.rules])

    # Steering

    def as_actor(self, actor: str) -> Run:
        """Return another handle of the same run whose commands carry this actor."""
        other = copy.copy(self)  # shares what was read
        other.actor = check_actor(actor)
        return other

    def ask(self, action: str, /, *, timeout: float = WAIT, **args: Any) -> Outcome:
        """Ask the loop for any action of `nbllm.runs.actions`, by name; the methods below ask for those that are there.

        Raises:
            RefusedError: There is no such action, an argument is wrong, or the loop refused.
            RunError: The run is not live.
        """
        return ask(self, self.actor, action, args, timeout)

    def pause(self, *, timeout: float = WAIT) -> Outcome:
        """Hold the run at the next step boundary."""
        return ask(self, self.actor, "pause", {}, timeout)

    def resume(self, *, timeout: float = WAIT) -> Outcome:
        """Go on: from a pause; when stopped, failed or lost, from the newest good checkpoint.

        Raises:
            RunError: It has finished, or there is nothing that can start it.
        """
        with contextlib.suppress(NotLiveError):  # its trainer may end, or be found dead, just now
            if self.is_live:
                return ask(self, self.actor, "resume", {}, timeout)
        if self.state == "finished":
            raise RunError(
                f"{self.name} has finished: there is nothing to resume.", hint="fork() goes on from it."
            )
        launcher = self._can_launch("resume")
        return start_again(self, lambda: launcher.resume(self), timeout)

    def stop(self, *, timeout: float = WAIT) -> Outcome:
        """End the run at the next step boundary, with a checkpoint; `resume` goes on from it."""
        return ask(self, self.actor, "stop", {}, timeout)

    def save(self, *, timeout: float = WAIT) -> Outcome:
        """Write a checkpoint now."""
        return ask(self, self.actor, "save", {}, timeout)

    def evaluate(self, *, timeout: float = WAIT) -> Outcome:
        """Measure on held-out text now."""
        return ask(self, self.actor, "evaluate", {}, timeout)

    def profile(self, steps: int = 3, *, timeout: float = WAIT) -> Outcome:
        """Watch what every rank does in the next `steps` steps, up to 20; `run.profiles[-1]` shows it after the last.

        What is computed stays the same, and takes longer while it is watched. The first time in a process, torch's
        profiler may print "External init callback must run in same thread" to stderr: it is watched all the same.
        """
        return ask(self, self.actor, "profile", {"steps": steps}, timeout)

    def sample(self, prompt: str = "", *, max_new_tokens: int = 64, timeout: float = WAIT) -> str:
        """Let the model continue a prompt now, and return its text.

        Raises:
            RunError: There was no answer in time.
            RefusedError: The run refused.
        """
        outcome = ask(
            self, self.actor, "sample", {"prompt": prompt, "max_new_tokens": max_new_tokens}, timeout
        )
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

    def set(self, /, *, timeout: float = WAIT, **values: Any) -> Outcome:
        """Change settings from the next step on, all or none: `run.set(lr=1e-3)`.

        Raises:
            RefusedError: A setting is not offered, or out of range; the message is the reason.
        """
        return ask(self, self.actor, "set", values, timeout)

    def freeze(self, *patterns: str, timeout: float = WAIT) -> Outcome:
        """Stop training the parts that the patterns name: `run.freeze("embedding", "layers[:2]")`.

        `run.freeze("!layers[-2:]")` stops all but the last two layers; see `nbllm.training.freezing`.
        """
        return ask(self, self.actor, "freeze", {"patterns": list(patterns)}, timeout)

    def unfreeze(self, *patterns: str, timeout: float = WAIT) -> Outcome:
        """Train the parts again that the patterns name: `run.unfreeze("layers[1]")`."""
        return ask(self, self.actor, "unfreeze", {"patterns": list(patterns)}, timeout)

    def rewind(self, step: int, *, timeout: float = WAIT) -> Outcome:
        """Go back to the checkpoint at `step`, and on from there; what came after stays on record.

        Raises:
            RefusedError: There is no checkpoint at that step on the current branch; the message names them.
        """
        return ask(self, self.actor, "rewind", {"step": step}, timeout)

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
            UserError: It is not a rule.
            RefusedError: The run takes none: it is a replay, or has too many.
        """
        if isinstance(rule, Rule):
            if when is not None or do is not None or bounds:
                raise UserError("A whole rule is given, and parts of one.", hint="run.rule(rule)")
        else:
            given = {"name": rule, "when": when, "do": do, **bounds}
            rule = Rule.from_dict({name: value for name, value in given.items() if value is not None})
        return ask(self, self.actor, "rule", rule.to_dict(), timeout)

    def switch_rule(self, name: str, on: bool, *, timeout: float = WAIT) -> Outcome:
        """Switch a rule on or off: what `run.rules[name].on()` and `.off()` do."""
        return ask(self, self.actor, "rule", {"name": name, "on": on}, timeout)

    def fork(self, /, name: str, step: int | None = None, **changes: Any) -> Run:
        """Start a new run from a checkpoint of this one, which goes on undisturbed.

        Args:
            name: The new run's name.
            step: The checkpoint's step; `None` is the newest.
            **changes: Settings and configuration that differ in the new run.

        Raises:
            RunError: There is no such checkpoint, or nothing here that can start a run.
        """
        return self._can_launch("fork").fork(self, name, step, changes)

    def export(self, path: Path | str, step: int | None = None) -> Path:
        """Write the run's model as a directory of Hugging Face layout, which `nb.load` and transformers open.

        Of a checkpoint that several ranks wrote, one file of weights is in memory at a time.

        Args:
            path: The directory; files of an older model there are replaced.
            step: The checkpoint's step; `None` is the newest.

        Raises:
            WeightsError: There is no such checkpoint, or it holds no model.
            OSError: The disk is full, or the directory cannot be written.
        """
        return self._can_launch("export").export(self, path, step)

    def _can_launch(self, verb: str) -> Starter:
        reason = self.cannot.get("start_again" if verb == "resume" else verb)
        if reason is not None:
            raise RunError(f"{self.name} cannot {verb}: {reason}.")
        if self.launcher is None:
            raise RunError(
                f"This handle cannot {verb} {self.name}: it only watches and steers.",
                hint=f"nb.attach({str(self.path)!r}).{verb}(...) can.",
            )
        return self.launcher

    def rename(self, name: str) -> Run:
        """Give the run another name, and return it; its forks and replays name it by the new one.

        Raises:
            RunError: It is live, its folder is a link, the name is taken or cannot be one, or the folder cannot be
                renamed.
        """
        self.path = self._opened = managing.rename(self._opened, name)
        self._reader = RunReader(self.path)
        return self

    def delete(self) -> None:
        """Delete the run: its record, events, commands and checkpoints, for good. Forks and replays of it stay whole.

        Files in its folder that are no part of a run are left there, and named. Links are removed, never followed.

        Raises:
            RunError: It is live, its folder is a link, or something cannot be deleted; calling it again deletes the
                rest.
        """
        left = managing.delete(self._opened)
        if left:
            names = ", ".join(str(path.relative_to(self.path)) for path in left[:10])
            say(f"{self.path} stays, for files that are no part of the run: {names}.")

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

    def __repr__(self) -> str:
        return str(self.summary)

    def _repr_html_(self) -> str:
        return snapshot.html(self)
