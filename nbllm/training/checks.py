"""Whether an action can be done now, and what exactly is to be done: what rank 0 finds out before it decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import RefusedError, UserError
from nbllm.runs import checkpoint as checkpoints
from nbllm.runs.actions import ACTIONS, loop_action
from nbllm.runs.rules import MAX_RULES, Rule
from nbllm.training.metrics import check_metrics

if TYPE_CHECKING:
    from nbllm.training.session import Session
    from nbllm.training.steering_decisions import TakeAction
    from nbllm.training.watch import Watch


def checked(session: Session, watch: Watch, asked: TakeAction) -> TakeAction:
    """Return the decision to do what was asked, with checked arguments.

    Raises:
        UserError: It cannot be done; the text says why.
    """
    kind = loop_action(asked.action)
    decision = asked.replace(args=kind.check(asked.args, session.settings))
    check = _CHECKS.get(asked.action)
    return decision if check is None else check(session, watch, decision)


def refusal(action: str, error: Exception) -> str:
    """Return the reason that is recorded where an error refuses an action.

    Args:
        action: Its name.
        error: What was raised while the action was checked or carried out.

    Raises:
        Exception: `error` itself, where it must end the run.
    """
    if isinstance(error, UserError):
        return error.one_line
    if not ACTIONS[action].may_fail:
        raise error
    return f"{type(error).__name__}: {error}"


def _pause(session: Session, watch: Watch, asked: TakeAction) -> TakeAction:
    if session.paused:
        raise RefusedError("the run is paused already")
    return asked


def _resume(session: Session, watch: Watch, asked: TakeAction) -> TakeAction:
    if not session.paused:
        raise RefusedError("the run is not paused")
    return asked


def _set(session: Session, watch: Watch, asked: TakeAction) -> TakeAction:
    session.check_values(asked.args)
    return asked


def _freeze(session: Session, watch: Watch, asked: TakeAction) -> TakeAction:
    session.frozen_after(asked.action, asked.args["patterns"])
    return asked


def _rewind(session: Session, watch: Watch, asked: TakeAction) -> TakeAction:
    """Find the newest good checkpoint at or before the step that was asked for."""
    step = asked.args["step"]
    on_branch = session.timeline().on_branch
    target, problems = checkpoints.newest_good(session.path, lambda c: c.step <= step and on_branch(c))
    for problem in problems:
        session.emit("warning", text=problem)
    if target is None:
        raise RefusedError(f"there is no good checkpoint at or before step {step}")
    found: dict[str, Any] = {"to": target.step, "keep": target.num_actions, "asked": step}
    return asked.replace(args=found, checkpoint=target.name)


def _rule(session: Session, watch: Watch, asked: TakeAction) -> TakeAction:
    """Check a rule, or the switch of one."""
    args, book = dict(asked.args), watch.book
    on, name = args.pop("on", None), args["name"]
    if on is None:
        rule = Rule.from_dict(args)
        if rule.name not in book and len(book) >= MAX_RULES:
            raise RefusedError(f"a run has at most {MAX_RULES} rules")
        if session.metrics is None:
            return asked.replace(args=rule.to_dict(), reason=watch.doubt(rule.condition) or asked.reason)
        check_metrics(rule, session.metrics)
        return asked.replace(args=rule.to_dict())
    if len(args) > 1:
        raise RefusedError(
            "a rule is set with name, when and do, or switched with name and on: true or false"
        )
    _ = book[name]
    return asked


_CHECKS: dict[str, Callable[[Session, Watch, TakeAction], TakeAction]] = {
    "pause": _pause,
    "resume": _resume,
    "set": _set,
    "freeze": _freeze,
    "unfreeze": _freeze,
    "rewind": _rewind,
    "rule": _rule,
}
