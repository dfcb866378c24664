"""Sending commands to a live run, and waiting for its answers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

from nbllm.core.errors import RefusedError, RunError
from nbllm.runs import commands
from nbllm.runs.actions import Action, loop_action, words
from nbllm.runs.liveness import LIVE
from nbllm.runs.recorded import RecordedRun
from nbllm.runs.timeline import count

WAIT = 60.0  # seconds to wait for a command's answer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a command.

    Args:
        action: "set", "pause", ...
        outcome: "applied"; or "pending": it waits, since the run has not come to a step boundary.
        step: The step boundary at which it was applied.
        reason: What the run said about it.
        args: The arguments as applied.
        id: The command's id.
    """

    action: str
    outcome: str
    step: int | None = None
    reason: str = ""
    args: dict[str, Any] = dataclasses.field(default_factory=dict)
    id: str = ""

    def __repr__(self) -> str:
        text = f"{words(self.action, self.args)} {self.outcome}"
        if self.step is not None:
            text += f" at step {self.step}"
        return f"{text}: {self.reason}" if self.reason else text


class NotLiveError(RunError):
    """A run that has ended, or whose trainer is gone, was asked for something that only a live one can do."""


def check_asked(run: RecordedRun, action: Any, args: object) -> dict[str, Any]:
    """Return the arguments of a command, checked as the loop will check them, before it is sent.

    Raises:
        NotLiveError: The run is not live.
        RefusedError: The loop would refuse; `what` is the reason.
    """
    kind = loop_action(action)
    checked = kind.check(args, run.settings)
    state = run.state
    if state not in LIVE:
        raise _not_live(run, action, state)
    if action in run.cannot:
        raise RefusedError(run.cannot[action])
    if action == "rewind":
        _check_checkpoint(run, checked["step"])
    return checked


def _check_checkpoint(run: RecordedRun, step: int) -> None:
    timeline = run.timeline
    there = sorted({info.step for info in run.checkpoints if timeline.on_branch(info)})
    if step not in there:
        known = ", ".join(map(str, there)) or "none yet"
        raise RefusedError(f"There is no checkpoint at step {step} to rewind to; there are: {known}.")


def ask(run: RecordedRun, actor: str, action: str, args: Mapping[str, Any], timeout: float) -> Outcome:
    """Send a command and wait for its answer.

    Raises:
        NotLiveError: The run is not live, or ended before it took the command, which is then withdrawn.
        RefusedError: The run refused; `what` is its reason.
        KeyboardInterrupt: The wait was interrupted; the command stays asked, as the message says.
    """
    args = check_asked(run, action, args)
    command = commands.send(run.path, action, args, actor)
    try:
        return _answer(run, command, timeout)
    except KeyboardInterrupt:
        text = f"{words(action, args)} stays asked; the run takes it at its next step boundary."
        raise KeyboardInterrupt(text) from None


def _answer(run: RecordedRun, command: commands.Command, timeout: float) -> Outcome:
    deadline = time.monotonic() + timeout
    pause = 0.005
    while True:
        answer = run.timeline.answer(command.id)
        if answer is not None:
            return _outcome(answer, command)
        state = run.state
        if state not in LIVE:
            # It may have answered with its last words, between the two looks.
            answer = run.timeline.answer(command.id)
            if answer is not None:
                return _outcome(answer, command)
            commands.withdraw(run.path, command)
            raise _not_live(run, command.action, state)
        if time.monotonic() >= deadline:
            reason = f"not taken within {timeout:g} s; it stays asked, and run.events('action') will show it"
            return Outcome(
                action=command.action, outcome="pending", reason=reason, args=command.args, id=command.id
            )
        time.sleep(pause)
        pause = min(0.1, pause * 1.5)


def _outcome(answer: Action, command: commands.Command) -> Outcome:
    if answer.outcome == "refused":
        raise RefusedError(answer.reason or f"The run refused to {command.action}.")
    return Outcome(
        action=answer.action or command.action,
        outcome=answer.outcome,
        step=answer.step,
        reason=answer.reason,
        args=answer.args or command.args,
        id=command.id,
    )


def _not_live(run: RecordedRun, action: str, state: str) -> NotLiveError:
    said = {
        "finished": ("has finished", "fork() goes on from it; nb.load(run) opens its model."),
        "stopped": ("was stopped", "resume() goes on from its newest checkpoint."),
        "failed": ("has failed", "resume() goes on from its newest good checkpoint."),
        "lost": ("was lost: its trainer is gone", "resume() goes on from its newest good checkpoint."),
    }[state]
    if not run.exists:
        return NotLiveError(f"The folder of {run.name} is gone.", where=run.path)
    because = f" ({run.reason})" if run.reason else ""
    return NotLiveError(f"{run.name} {said[0]}{because}; it cannot {action}.", where=run.path, hint=said[1])


def start_again(run: RecordedRun, resume: Callable[[], object], timeout: float) -> Outcome:
    """Start a new session of a run that is not live, and wait until it has begun.

    Raises:
        RunError: It failed before it began.
    """
    before = run.timeline.session
    number, end = before.number, before.end
    resume()
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        session = run.timeline.session
        if session.number > number:
            assert session.start is not None
            began = count(session.start.get("from_step"), session.start["step"])
            return Outcome(action="resume", outcome="applied", step=began, reason="a new session began")
        if session.end is not end:
            raise RunError(f"{run.name} could not be resumed: {run.reason}.", where=run.path)
        time.sleep(0.02)
    reason = f"no session has begun within {timeout:g} s"
    return Outcome(action="resume", outcome="pending", reason=reason)
