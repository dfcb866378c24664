"""What our loop reports, and so what its rules can look at."""

from __future__ import annotations

from collections.abc import Collection

from nbllm.core.errors import UserError, nearest
from nbllm.runs.conditions import EVALUATION
from nbllm.runs.rules import Rule
from nbllm.training.validation import NO_VALIDATION

_STEP = ("loss", "lr", "grad_norm", "tokens", "tokens_per_second", "memory", "seconds")
_EVALUATION = ("loss", "bits_per_byte", "tokens")


def reported_metrics(*, evaluates: bool) -> frozenset[str]:
    """Return the names of all that a run reports.

    Args:
        evaluates: Whether it has held-out text.
    """
    return frozenset((*_STEP, *(f"{EVALUATION}{name}" for name in _EVALUATION if evaluates)))


def check_metrics(rule: Rule, reported: Collection[str]) -> None:
    """Check that a rule looks at nothing that never comes: it would wait for ever.

    Raises:
        UserError: It does.
    """
    for name in sorted(rule.condition.metrics.difference(reported)):
        if name.startswith(EVALUATION) and not any(known.startswith(EVALUATION) for known in reported):
            raise UserError(f"The rule {rule.name!r} looks at {name}, but {NO_VALIDATION}.")
        raise UserError(
            f"The rule {rule.name!r} looks at {name!r}, which this run does not report.",
            hint=nearest(name, reported),
        )
