"""What a run does next, decided on rank 0: commands and rules, a replay's script, what is due, the pause, the end."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import RefusedError
from nbllm.runs.actions import loop_action
from nbllm.runs.events import is_number
from nbllm.runs.presence import GONE
from nbllm.training.checks import checked, refusal
from nbllm.training.steering_decisions import Decision, DoWork, EndRun, TakeAction, TakeStep
from nbllm.training.watch import Watch

if TYPE_CHECKING:
    from nbllm.runs.checkpoint import CheckpointInfo
    from nbllm.runs.commands import Command
    from nbllm.runs.rules import RuleAction
    from nbllm.runs.timeline import Timeline
    from nbllm.training.session import Session
    from nbllm.training.watch import Due

POLL_SECONDS = 0.02  # how often a paused run looks for commands
SAVE_SECONDS = 0.5  # how often a full disk is tried again at the end
REPLAYED = "this run is a replay; fork it to steer it"


@dataclasses.dataclass(frozen=True)
class Recorded:
    """An action that was taken before, to be taken again at the same step."""

    step: int
    action: str
    args: dict[str, Any]
    actor: str


class Decider:
    """Decides what the session does next. Each decision is carried out before the next is asked for.

    A resumed run repeats, each at its step and without recording it again, the actions that its record holds
    beyond the checkpoint (`to_repeat`). A replay takes its script's actions in the same way, and records them.

    Args:
        session: What is steered; its state is read, never changed.
        watch: The run's rules.
        to_repeat: Recorded actions of this run that the checkpoint does not hold yet.
        script: A replay's actions; when given, nobody else may change the state.
    """

    def __init__(
        self,
        session: Session,
        watch: Watch,
        *,
        to_repeat: Sequence[Recorded] = (),
        script: Sequence[Recorded] | None = None,
    ) -> None:
        self.session = session
        self.watch = watch
        self.to_repeat = list(to_repeat)
        self.script = None if script is None else list(script)

    @classmethod
    def of(cls, session: Session, timeline: Timeline, base: CheckpointInfo | None) -> Decider:
        """Return the decider of a run that goes on from a checkpoint.

        Args:
            session: Its session.
            timeline: The run so far.
            base: The checkpoint; `None` at the start of a run that has none.
        """
        replay = session.record.get("replay")
        missing = timeline.pending_after(base.num_actions, base.step) if base is not None else []
        return cls(
            session,
            Watch(timeline, session.step, blind=replay is not None),
            to_repeat=[Recorded(a.step, a.action, a.args, a.actor) for a in missing],
            # a replay's actions that are not yet in its own log
            script=None
            if replay is None
            else [Recorded(**e) for e in replay["script"]][session.num_actions :],
        )

    # -- what is decided, and when ------------------------------------------------------------------------------

    def before_step(self) -> Iterator[Decision]:
        """Do what was asked for, wait while the run is held, and then take a step or end the run."""
        yield from self.requests()
        while self.is_held():
            time.sleep(POLL_SECONDS)
            yield from self.requests()
        yield self._end() or TakeStep()

    def after_step(self) -> Iterator[Decision]:
        """Complete a checkpoint that is written, do what is due after a step, and then what the rules ask."""
        if self.session.is_save_written():
            yield DoWork(work="complete_save")
        yield from self.repeats()  # a checkpoint that is due holds what was recorded up to its step
        yield from self.session.due()
        yield from self.rules()

    def before_next_try(self) -> Iterator[Decision]:
        """Wait a while, do what was asked for, and try again; or end the run, if that was asked."""
        if (end := self.asked_to_end()) is not None:
            yield end
        else:
            time.sleep(SAVE_SECONDS)
            yield from self.requests()
            yield TakeStep()

    def requests(self) -> Iterator[TakeAction]:
        """Take the actions due at this step, then the commands that have come in."""
        yield from self.repeats()
        step = self.session.step
        while self.script and self.script[0].step <= step:
            due = self.script.pop(0)
            yield from self._decide(_as_asked(due), from_script=True)
        for command in self.session.inbox.take():
            yield from self._decide(_of_command(command))
        for warning in self.session.inbox.drain_warnings():
            self.session.emit("warning", text=warning)

    def repeats(self) -> Iterator[TakeAction]:
        """Take the actions again that were recorded at this step before the run was cut off."""
        while self.to_repeat and self.to_repeat[0].step <= self.session.step:
            asked = _as_asked(self.to_repeat.pop(0)).replace(recorded=True)
            yield checked(self.session, self.watch, asked)

    def rules(self) -> Iterator[TakeAction]:
        """Let the rules act whose condition holds after the step that was taken."""
        yield from self.repeats()  # what was recorded at this step before comes before what is new
        step = self.session.step
        due, broken = self.watch.due(step)
        for rule, error in broken:
            off = TakeAction(action="rule", args={"name": rule.name, "on": False}, actor=rule.actor)
            self.session.record_action(off, "applied", f"{rule.when} cannot be computed: {error}")
        for one in due:
            if self.session.step != step:  # a rule has rewound: what the others looked at has not been
                return
            yield from self._follow(one)

    def refuse_rest(self, reason: str) -> None:
        """Answer the commands that came too late; one that asked for the end has what it asked for."""
        for command in self.session.inbox.take():
            outcome = "applied" if command.action == "stop" else "refused"
            self.session.record_action(_of_command(command), outcome, reason)

    def is_held(self) -> bool:
        """Whether no step is to be taken now: paused, or the disk does not take what was done; a stop ends that."""
        held = self.session.paused or not self.session.journal.flush()
        return held and self.asked_to_end() is None

    def asked_to_end(self) -> EndRun | None:
        """Return how the run is to end now, with what it is doing; `None`: it may go on."""
        if self.session.presence.is_gone():
            return EndRun(state="stopped", reason=GONE, save=False)
        reason = self.session.exit_reason or self.session.stop_reason
        return EndRun(state="stopped", reason=reason) if reason else None

    # -- what it learns -----------------------------------------------------------------------------------------

    def went_back(self, step: int) -> None:
        """The run was rewound to `step`."""
        self.to_repeat.clear()  # what was still to come is undone too
        self.watch.cut(step)

    # -- how ----------------------------------------------------------------------------------------------------

    def _end(self) -> EndRun | None:
        if (end := self.asked_to_end()) is not None:
            return end
        steps = self.session.values.get("steps")
        return EndRun(state="finished") if steps is not None and self.session.step >= steps else None

    def _decide(self, asked: TakeAction, *, from_script: bool = False) -> Iterator[TakeAction]:
        """Yield the decision to do what was asked; record the refusal where that cannot be."""
        session = self.session
        try:
            if not from_script:
                self._check_allowed(asked.action)
            decision = checked(session, self.watch, asked)
        except Exception as error:
            session.refuse(asked, refusal(asked.action, error))
        else:
            yield decision

    def _check_allowed(self, action: str) -> None:
        if action in self.session.cannot:
            raise RefusedError(self.session.cannot[action])
        if self.script is not None and loop_action(action).scripted:
            raise RefusedError(REPLAYED)

    def _follow(self, due: Due) -> Iterator[TakeAction]:
        """Do what a rule asks, one thing after the other, each recorded as an action of its own."""
        rule = due.rule
        # All are worked out before the first of them changes anything.
        for action, args in [self._as_command(one, due) for one in rule.do]:
            asked = TakeAction(
                action=action, args=args, actor=rule.actor, reason=due.reason, firing=due.firing
            )
            yield from self._decide(asked)
        if due.last:
            times = f"{due.firing} time{'' if due.firing == 1 else 's'}"
            text = f"the rule {rule.name!r} has acted {times} and is off now; its limit is {rule.limit}"
            self.session.emit("warning", text=text)

    def _as_command(self, asked: RuleAction, due: Due) -> tuple[str, dict[str, Any]]:
        """Return what a rule asks for in the terms of a command."""
        action, args = asked["action"], asked["args"]
        if action == "rewind":
            # The first of the values came from the weights at `begins`, so only older weights can be trusted.
            back = self.session.step - args["steps"] if "steps" in args else due.begins - 1
            return "rewind", {"step": max(0, back)}
        if action == "scale":
            return "set", {name: self._scaled(name, factor) for name, factor in args.items()}
        if action == "stop":
            return "stop", {"reason": f"{due.rule.actor}: {due.reason}"}
        return action, args

    def _scaled(self, name: str, factor: float) -> float:
        value = self.session.values.get(name)
        if not is_number(value):
            return factor  # no setting, which the check of `set` says
        whole = any(setting.name == name and setting.kind == "int" for setting in self.session.settings)
        return round(value * factor) if whole else value * factor


def _as_asked(recorded: Recorded) -> TakeAction:
    return TakeAction(action=recorded.action, args=recorded.args, actor=recorded.actor)


def _of_command(command: Command) -> TakeAction:
    return TakeAction(
        action=command.action,
        args=command.args,
        actor=command.actor,
        id=command.id,
        asked=command.time,
    )
