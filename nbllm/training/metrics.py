"""What our loop reports, and so what its rules can look at."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from nbllm.core.errors import UserError, nearest
from nbllm.objectives import Objective
from nbllm.objectives.measures import loss_of_source
from nbllm.runs.conditions import EVALUATION
from nbllm.runs.rules import Rule
from nbllm.training.validation import NO_VALIDATION

_STEP = ("loss", "lr", "grad_norm", "tokens", "tokens_per_second", "memory", "seconds")
_EVALUATION = ("loss", "tokens")


def reported_metrics(
    objective: type[Objective[Any]], *, evaluates: bool, sources: Sequence[str] = ()
) -> frozenset[str]:
    """Return the names of all that a run reports.

    Args:
        objective: What it trains for.
        evaluates: Whether it has held-out text.
        sources: Names of the data sets that it trains on, where they are several.
    """
    own = (*objective.metrics, *map(loss_of_source, sources))
    measured = (*_EVALUATION, *(("bits_per_byte",) if objective.counts_every_token else ()), *own)
    return frozenset((*_STEP, *own, *(f"{EVALUATION}{name}" for name in measured if evaluates)))


def sources_of(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the data sets that a run trains on and is measured on, as its record has `data`."""
    return tuple(dict.fromkeys(name for part in data.values() for name in (part or {}).get("sources", ())))


def check_metrics(rule: Rule, reported: Collection[str]) -> None:
    """Check that a rule looks only at metrics that the run reports: otherwise it would never act.

    Raises:
        UserError: It looks at another.
    """
    for name in sorted(rule.condition.metrics.difference(reported)):
        if name.startswith(EVALUATION) and not any(known.startswith(EVALUATION) for known in reported):
            raise UserError(f"The rule {rule.name!r} looks at {name}, but {NO_VALIDATION}.")
        raise UserError(
            f"The rule {rule.name!r} looks at {name!r}, which this run does not report.",
            hint=nearest(name, reported),
        )
