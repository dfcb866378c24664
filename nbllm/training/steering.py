"""How a running loop is steered: commands read at step boundaries, acted on, and recorded with step and actor."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import RefusedError, UserError, nearest
from nbllm.runs.settings import Setting
from nbllm.runs.timeline import STATE_ACTIONS
from nbllm.training.optim import check_patterns
from nbllm.training.settings import SETTINGS

if TYPE_CHECKING:
    from nbllm.runs.commands import Command
    from nbllm.training.trainer import Trainer

SIDE_ACTIONS = ("sample", "evaluate", "save")  # that these go wrong, out of memory say, does not end a run


@dataclasses.dataclass(frozen=True)
class Recorded:
    """An action that was taken before, to be taken again at the same step."""

    step: int
    action: str
    args: dict[str, Any]
    actor: str


class Steering:
    """Carries out commands on a trainer.

    A resumed run repeats, each at its step and without recording it twice, the actions that its log holds
    beyond the checkpoint (`to_repeat`). A replay takes its script's actions in the same way, and records them.

    Args:
        trainer: What is steered.
        to_repeat: Recorded actions of this run that the checkpoint does not hold yet.
        script: A replay's actions; when given, nobody else may change the state.
    """

    def __init__(
        self,
        trainer: Trainer,
        *,
        to_repeat: Sequence[Recorded] = (),
        script: Sequence[Recorded] | None = None,
    ) -> None:
        self.trainer = trainer
        self.to_repeat = list(to_repeat)
        self.script = None if script is None else list(script)
        self.paused = False
        self.stop_reason: str | None = None
        self._command: Command | None = None  # the one being carried out

    def at_boundary(self) -> None:
        """Take the actions due at this step, then the commands that have come in."""
        self.repeat_due()
        step = self.trainer.state.step
        while self.script and self.script[0].step <= step:
            due = self.script.pop(0)
            self._record(due.action, due.args, due.actor, functools.partial(self._act, due.action, due.args))
        for command in self.trainer.inbox.take():
            self._obey(command)
        for warning in self.trainer.inbox.drain_warnings():
            self.trainer.emit("warning", text=warning)

    def repeat_due(self) -> None:
        """Take the actions again that were recorded at this step before the run was cut off."""
        while self.to_repeat and self.to_repeat[0].step <= self.trainer.state.step:
            due = self.to_repeat.pop(0)
            self._act(due.action, due.args)

    def refuse_rest(self, reason: str) -> None:
        """Answer the commands that came too late; one that asked for the end has what it asked for."""
        for command in self.trainer.inbox.take():
            outcome = "applied" if command.action == "stop" else "refused"
            self._say(command.action, command.args, command.actor, outcome, reason, command=command)

    def _obey(self, command: Command) -> None:
        def act() -> dict[str, Any] | None:
            if command.action in STATE_ACTIONS and self.script is not None:
                raise RefusedError("this run is a replay; fork it to steer it")
            return self._act(command.action, command.args)

        self._record(command.action, command.args, command.actor, act, command=command)

    def _record(
        self,
        action: str,
        args: dict[str, Any],
        actor: str,
        act: Callable[[], dict[str, Any] | None],
        *,
        command: Command | None = None,
    ) -> None:
        step, self._command = self.trainer.state.step, command
        try:
            changed = act()
        except UserError as error:
            outcome, reason = "refused", error.what
        except Exception as error:
            if action not in SIDE_ACTIONS:
                raise
            outcome, reason = "refused", f"{type(error).__name__}: {error}"
        else:
            outcome, reason = "applied", ""
            args = args if changed is None else changed
        self._say(action, args, actor, outcome, reason, step=step, command=command)
        if outcome == "applied" and action in STATE_ACTIONS:
            self.trainer.num_actions += 1

    def _say(
        self,
        action: str,
        args: dict[str, Any],
        actor: str,
        outcome: str,
        reason: str,
        *,
        step: int | None = None,
        command: Command | None = None,
    ) -> None:
        """Record what became of an action: the event that whoever sent `command` waits for."""
        self.trainer.emit(
            "action",
            step=step,
            id="" if command is None else command.id,
            action=action,
            args=args,
            actor=actor,
            outcome=outcome,
            reason=reason,
            asked=None if command is None else command.time,
        )

    def _act(self, action: str, args: dict[str, Any]) -> dict[str, Any] | None:
        """Carry out one action; return the arguments as they came to be applied, where they differ."""
        actions: dict[str, Callable[..., dict[str, Any] | None]] = {
            "pause": self._pause,
            "resume": self._resume,
            "stop": self._stop,
            "save": self.trainer.save,
            "evaluate": self.trainer.validate,
            "sample": self._sample,
            "set": self._set,
            "freeze": self._freeze,
            "unfreeze": self._unfreeze,
            "rewind": self._rewind,
        }
        if action not in actions:
            raise RefusedError(f"this loop has no action {action!r}. {nearest(action, actions)}")
        try:
            inspect.signature(actions[action]).bind(**args)
        except TypeError as error:  # a front end sent arguments that the action does not take
            raise RefusedError(f"{action} cannot take {args!r}: {error}") from error
        return actions[action](**args)

    def _pause(self) -> None:
        if self.paused:
            raise RefusedError("the run is paused already")
        self.paused = True  # first: a person wants to hold the run just when it cannot be saved
        self.trainer.save_or_warn()

    def _resume(self) -> None:
        if not self.paused:
            raise RefusedError("the run is not paused")
        self.paused = False

    def _stop(self, reason: str = "asked to stop") -> None:
        self.stop_reason = reason
        self.paused = False

    def _sample(self, prompt: str = "", max_new_tokens: int | None = None) -> None:
        command = self._command
        asked = {} if command is None else {"id": command.id, "actor": command.actor}
        self.trainer.sample(prompt, max_new_tokens, **asked)

    def _set(self, **values: Any) -> dict[str, Any]:
        declared = {setting.name: setting for setting in SETTINGS}
        checked = {}
        for name, value in values.items():
            if name not in declared:
                raise RefusedError(f"this loop has no setting {name!r}. {nearest(name, declared)}")
            checked[name] = declared[name].check(value)
        if checked.get("steps", self.trainer.state.step) < self.trainer.state.step:
            raise RefusedError(
                f"{checked['steps']} steps are fewer than the {self.trainer.state.step} already taken"
            )
        self.trainer.set_values(checked)
        return checked

    def _rewind(self, step: int) -> dict[str, Any]:
        step = Setting(name="step", kind="int", low=0).check(step)
        applied = self.trainer.rewind(step)
        self.to_repeat.clear()  # what was still to come is undone too
        return applied

    def _freeze(self, patterns: Sequence[str]) -> None:
        self._check_patterns(patterns)
        frozen = self.trainer.state.frozen
        self.trainer.set_frozen((*frozen, *(p for p in patterns if p not in frozen)))

    def _unfreeze(self, patterns: Sequence[str]) -> None:
        frozen = self.trainer.state.frozen
        for pattern in patterns:
            if pattern not in frozen:
                held = ", ".join(map(repr, frozen)) or "nothing"
                raise RefusedError(f"{pattern!r} is not among the frozen patterns: {held}")
        self.trainer.set_frozen(tuple(pattern for pattern in frozen if pattern not in patterns))

    def _check_patterns(self, patterns: Sequence[str]) -> None:
        if not patterns or isinstance(patterns, str) or not all(isinstance(p, str) for p in patterns):
            raise RefusedError("freeze takes a list of name patterns, such as ['embedding.*', 'blocks.0.*']")
        check_patterns(self.trainer.optimizer.names, patterns)
