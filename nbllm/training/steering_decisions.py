"""What a run does next, as plain values: rank 0 decides, every rank does it."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

from nbllm.core.config import Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class TakeAction(Config):
    """Carry out an action that was asked for, of `nbllm.runs.actions`.

    Args:
        action: Its name.
        args: Its arguments, as they are recorded; rank 0 has checked them.
        actor: Who asked.
        reason: Why a rule asks, or what was found when the arguments were checked.
        id: The command's id, for whoever waits for the answer.
        asked: When the command was sent, in seconds since 1970.
        firing: How often the rule that asks has then acted; else 0.
        checkpoint: The folder's name of the checkpoint that a rewind goes to.
        recorded: Whether the run's record holds the action already: a resumed run repeats it.
    """

    action: str
    args: dict[str, Any]
    actor: str
    reason: str = ""
    id: str = ""
    asked: float | None = None
    firing: int = 0
    checkpoint: str = ""
    recorded: bool = False

    def to_event(self, outcome: str, reason: str) -> dict[str, Any]:
        """Return the fields of the event that says what became of the action.

        Args:
            outcome: "applied" or "refused".
            reason: Why, or what was found.
        """
        event = {name: getattr(self, name) for name in ("id", "action", "args", "actor", "asked")}
        return (
            event | {"outcome": outcome, "reason": reason} | ({"firing": self.firing} if self.firing else {})
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoWork(Config):
    """Do what the configuration asks for at this step.

    Args:
        work: "evaluate", "sample", "save" (which may go on beside the next steps) or "complete_save".
        args: Of a sample, its prompt.
    """

    work: str
    args: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TakeStep(Config):
    """Go on: take the next step, or try again what has failed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndRun(Config):
    """End the run, for this session.

    Args:
        state: "finished", "stopped" or "failed".
        reason: Why.
        save: Whether a last checkpoint is to be written.
    """

    state: str
    reason: str | None = None
    save: bool = True


Decision: TypeAlias = TakeAction | DoWork | TakeStep | EndRun
_KINDS: dict[str, type[Decision]] = {kind.__name__: kind for kind in (TakeAction, DoWork, TakeStep, EndRun)}


def to_plain(decision: Decision | None) -> list[Any] | None:
    """Return a decision as JSON can hold it, to be sent to other ranks; `None` says that there is no more."""
    return None if decision is None else [type(decision).__name__, decision.to_dict()]


def from_plain(value: list[Any] | None) -> Decision | None:
    """Return the decision that `to_plain` was given."""
    return None if value is None else _KINDS[value[0]].from_dict(value[1])
