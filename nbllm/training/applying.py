"""Carrying out an action that was decided on: a function of the session's state and the decision alone.

Every rank calls it, so nothing here looks at what only one of them can know: the commands, the clock, the rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nbllm.runs.actions import ACTIONS

if TYPE_CHECKING:
    from nbllm.training.session import Session
    from nbllm.training.steering_decisions import TakeAction


def apply(session: Session, decision: TakeAction) -> dict[str, Any]:
    """Carry out an action, and return its arguments as they are to be recorded.

    Raises:
        UserError: It cannot be done now, which only the trying has shown.
    """
    act = ACTIONS[decision.action].act
    if act is None:
        _APPLY[decision.action](session, decision)
        return decision.args
    applied = act(session, **decision.args)
    return decision.args if applied is None else dict(applied)


def _pause(session: Session, decision: TakeAction) -> None:
    session.paused = True  # first: a person wants to hold the run just when it cannot be saved
    session.save_or_warn()


def _resume(session: Session, decision: TakeAction) -> None:
    session.paused = False


def _stop(session: Session, decision: TakeAction) -> None:
    actor, reason = decision.actor, decision.args.get("reason")
    session.stop_reason = reason or ("asked to stop" if actor == "person" else f"asked to stop by {actor}")
    session.paused = False


def _save(session: Session, decision: TakeAction) -> None:
    session.save()


def _evaluate(session: Session, decision: TakeAction) -> None:
    session.validate()


def _sample(session: Session, decision: TakeAction) -> None:
    asked: dict[str, Any] = {"actor": decision.actor, **({"id": decision.id} if decision.id else {})}
    session.sample(**decision.args, **asked)


def _profile(session: Session, decision: TakeAction) -> None:
    session.profile(**decision.args)


def _set(session: Session, decision: TakeAction) -> None:
    session.set_values(decision.args)


def _freeze(session: Session, decision: TakeAction) -> None:
    session.set_frozen(session.frozen_after("freeze", decision.args["patterns"]))


def _unfreeze(session: Session, decision: TakeAction) -> None:
    session.set_frozen(session.frozen_after("unfreeze", decision.args["patterns"]))


def _rewind(session: Session, decision: TakeAction) -> None:
    session.rewind(decision.checkpoint)


def _rule(session: Session, decision: TakeAction) -> None:
    """A rule changes nothing but what rank 0 decides: its rule book takes it from the record."""


_APPLY: dict[str, Callable[[Session, TakeAction], None]] = {
    "pause": _pause,
    "resume": _resume,
    "stop": _stop,
    "save": _save,
    "evaluate": _evaluate,
    "sample": _sample,
    "profile": _profile,
    "set": _set,
    "freeze": _freeze,
    "unfreeze": _unfreeze,
    "rewind": _rewind,
    "rule": _rule,
}
