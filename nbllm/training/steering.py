"""How a running loop is steered: commands and rules, acted on at step boundaries, recorded with step and actor."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import RefusedError, UserError
from nbllm.runs.actions import ACTIONS, action_of, changes_state, loop_action, recordable
from nbllm.runs.events import is_number
from nbllm.runs.rules import MAX_RULES, Rule, RuleAction
from nbllm.training.metrics import check_metrics

if TYPE_CHECKING:
    from nbllm.runs.commands import Command
    from nbllm.training.session import Session
    from nbllm.training.watch import Due, Watch

REPLAYED = "this run is a replay; fork it to steer it"


@dataclasses.dataclass(frozen=True)
class Recorded:
    """An action that was taken before, to be taken again at the same step."""

    step: int
    action: str
    args: dict[str, Any]
    actor: str


@dataclasses.dataclass(frozen=True)
class _Done:
    """How an action came to be applied."""

    args: dict[str, Any]
    reason: str = ""


class Steering:
    """Carries out on a trainer what people, agents and rules ask.

    A resumed run repeats, each at its step and without recording it twice, the actions that its log holds
    beyond the checkpoint (`to_repeat`). A replay takes its script's actions in the same way, and records them.

    Args:
        trainer: What is steered.
        watch: The run's rules.
        to_repeat: Recorded actions of this run that the checkpoint does not hold yet.
        script: A replay's actions; when given, nobody else may change the state.
    """

    def __init__(
        self,
        trainer: Session,
        watch: Watch,
        *,
        to_repeat: Sequence[Recorded] = (),
        script: Sequence[Recorded] | None = None,
    ) -> None:
        self.trainer = trainer
        self.watch = watch
        self.to_repeat = list(to_repeat)
        self.script = None if script is None else list(script)
        self.paused = False
        self.stop_reason: str | None = None
        self._asked: dict[str, Any] = {}  # who asked for what is being carried out, and in which command

    def at_boundary(self) -> None:
        """Take the actions due at this step, then the commands that have come in."""
        self.repeat_due()
        step = self.trainer.step
        while self.script and self.script[0].step <= step:
            due = self.script.pop(0)
            self._record(due.action, due.args, due.actor, functools.partial(self._act, due.action, due.args))
        for command in self.trainer.inbox.take():
            self._obey(command.action, command.args, command.actor, command=command)
        for warning in self.trainer.inbox.drain_warnings():
            self.trainer.emit("warning", text=warning)

    def follow_rules(self) -> None:
        """Let the rules act whose condition holds after the step that was taken."""
        self.repeat_due()  # what was recorded at this step before comes before what is new
        step = self.trainer.step
        due, broken = self.watch.due(step)
        for rule, error in broken:
            off = {"name": rule.name, "on": False}
            self._say("rule", off, rule.actor, "applied", f"{rule.when} cannot be computed: {error}")
        for one in due:
            if self.trainer.step != step:  # a rule has rewound: what the others looked at has not been
                return
            self._follow(one)

    def repeat_due(self) -> None:
        """Take the actions again that were recorded at this step before the run was cut off."""
        while self.to_repeat and self.to_repeat[0].step <= self.trainer.step:
            due = self.to_repeat.pop(0)
            self._act(due.action, due.args)

    def refuse_rest(self, reason: str) -> None:
        """Answer the commands that came too late; one that asked for the end has what it asked for."""
        for command in self.trainer.inbox.take():
            outcome = "applied" if command.action == "stop" else "refused"
            self._say(command.action, command.args, command.actor, outcome, reason, command=command)

    def _follow(self, due: Due) -> None:
        """Do what a rule asks, one thing after the other, each recorded as an action of its own."""
        rule = due.rule
        # All are worked out before the first of them changes anything.
        asked = [self._as_command(one, due) for one in rule.do]
        for action, args in asked:
            self._obey(action, args, rule.actor, reason=due.reason, firing=due.firing)
        if due.last:
            times = f"{due.firing} time{'' if due.firing == 1 else 's'}"
            text = f"the rule {rule.name!r} has acted {times} and is off now; its limit is {rule.limit}"
            self.trainer.emit("warning", text=text)

    def _as_command(self, asked: RuleAction, due: Due) -> tuple[str, dict[str, Any]]:
        """Return what a rule asks for in the terms of a command."""
        action, args = asked["action"], asked["args"]
        if action == "rewind":
            # The weights at `begins` gave the first of the numbers, so what is to be trusted is older.
            back = self.trainer.step - args["steps"] if "steps" in args else due.begins - 1
            return "rewind", {"step": max(0, back)}
        if action == "scale":
            return "set", {name: self._scaled(name, factor) for name, factor in args.items()}
        if action == "stop":
            return "stop", {"reason": f"{due.rule.actor}: {due.reason}"}
        return action, args

    def _scaled(self, name: str, factor: float) -> float:
        value = self.trainer.values.get(name)
        if not is_number(value):
            return factor  # no setting, which `set` says
        whole = any(setting.name == name and setting.kind == "int" for setting in self.trainer.settings)
        return round(value * factor) if whole else value * factor

    def _obey(
        self,
        action: str,
        args: dict[str, Any],
        actor: str,
        *,
        command: Command | None = None,
        reason: str = "",
        firing: int = 0,
    ) -> None:
        def act() -> _Done:
            if action in self.trainer.cannot:
                raise RefusedError(self.trainer.cannot[action])
            if self.script is not None and loop_action(action).scripted:
                raise RefusedError(REPLAYED)
            return self._act(action, args)

        self._record(action, args, actor, act, command=command, reason=reason, firing=firing)

    def _record(
        self,
        action: str,
        args: dict[str, Any],
        actor: str,
        act: Callable[[], _Done],
        *,
        command: Command | None = None,
        reason: str = "",
        firing: int = 0,
    ) -> None:
        step = self.trainer.step
        self._asked = {"actor": actor} if command is None else {"actor": actor, "id": command.id}
        outcome = "refused"
        try:
            done = act()
        except UserError as error:
            args, reason = recordable(args), error.one_line
        except Exception as error:
            if not ACTIONS[action].may_fail:
                raise
            reason = f"{type(error).__name__}: {error}"
        else:
            outcome = "applied"
            args, reason = done.args, done.reason or reason
        self._say(action, args, actor, outcome, reason, step=step, command=command, firing=firing)
        if outcome == "applied" and changes_state(action):
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
        firing: int = 0,
    ) -> None:
        """Record what became of an action: the event that whoever sent `command` waits for."""
        at = self.trainer.step if step is None else step
        event: dict[str, Any] = {
            "id": "" if command is None else command.id,
            "action": action,
            "args": args,
            "actor": actor,
            "outcome": outcome,
            "reason": reason,
            "asked": None if command is None else command.time,
        }
        if firing:
            event["firing"] = firing
        self.trainer.emit("action", step=at, **event)
        self.watch.book.take(action_of({"step": at, "time": 0.0, **event}))

    def _act(self, action: str, args: Mapping[str, Any]) -> _Done:
        """Check and carry out one action; return how it came to be applied."""
        kind = loop_action(action)
        checked = kind.check(args, self.trainer.settings)
        if kind.act is None:
            done: _Done | None = getattr(self, f"_{action}")(**checked)
        else:
            applied = kind.act(self.trainer, **checked)
            done = None if applied is None else _Done(dict(applied))
        return _Done(checked) if done is None else done

    def _pause(self) -> None:
        if self.paused:
            raise RefusedError("the run is paused already")
        self.paused = True  # first: a person wants to hold the run just when it cannot be saved
        self.trainer.save_or_warn()

    def _resume(self) -> None:
        if not self.paused:
            raise RefusedError("the run is not paused")
        self.paused = False

    def _stop(self, reason: str | None = None) -> None:
        actor = self._asked["actor"]
        self.stop_reason = reason or ("asked to stop" if actor == "person" else f"asked to stop by {actor}")
        self.paused = False

    def _save(self) -> None:
        self.trainer.save()

    def _evaluate(self) -> None:
        self.trainer.validate()

    def _sample(self, prompt: str = "", max_new_tokens: int | None = None) -> None:
        self.trainer.sample(prompt, max_new_tokens, **self._asked)

    def _set(self, /, **values: Any) -> None:
        step = self.trainer.step
        if values.get("steps", step) < step:
            raise RefusedError(f"{values['steps']} steps are fewer than the {step} already taken")
        self.trainer.set_values(values)

    def _rewind(self, step: int) -> _Done:
        applied = self.trainer.rewind(step)
        self.to_repeat.clear()  # what was still to come is undone too
        self.watch.cut(applied["to"])
        return _Done(applied)

    def _freeze(self, patterns: Sequence[str]) -> None:
        self.trainer.check_patterns(patterns)
        frozen = self.trainer.frozen
        self.trainer.set_frozen((*frozen, *(p for p in patterns if p not in frozen)))

    def _unfreeze(self, patterns: Sequence[str]) -> None:
        frozen = self.trainer.frozen
        for pattern in patterns:
            if pattern not in frozen:
                held = ", ".join(map(repr, frozen)) or "nothing"
                raise RefusedError(f"{pattern!r} is not among the frozen patterns: {held}")
        self.trainer.set_frozen(tuple(pattern for pattern in frozen if pattern not in patterns))

    def _rule(self, /, name: str, on: bool | None = None, **parts: Any) -> _Done | None:
        """Check a rule, or the switch of one; the book takes it as it takes it from the events."""
        book = self.watch.book
        if on is None:
            rule = Rule.from_dict({"name": name, **parts})
            if rule.name not in book and len(book) >= MAX_RULES:
                raise RefusedError(f"a run has at most {MAX_RULES} rules")
            if self.trainer.metrics is None:
                return _Done(rule.to_dict(), self.watch.doubt(rule.condition))
            check_metrics(rule, self.trainer.metrics)
            return _Done(rule.to_dict())
        if parts:
            raise RefusedError(
                "a rule is set with name, when and do, or switched with name and on: true or false"
            )
        _ = book[name]
        return None
