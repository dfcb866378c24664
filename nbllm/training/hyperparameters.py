"""The settings of our loop that may change while a run goes on: declared once, offered by every front end."""

from __future__ import annotations

from nbllm.objectives import OBJECTIVES
from nbllm.runs.settings import Setting
from nbllm.training.optimizers import OPTIMIZERS

LOOP_SETTINGS = (
    Setting(name="lr", low=0.0, high=1.0, help="Peak learning rate; the schedule multiplies it."),
    Setting(name="clip", low=1e-6, high=1e6, help="Largest norm of the gradient."),
    Setting(
        name="accumulation", kind="int", low=1, high=4096, unit="passes", help="Forward passes in one step."
    ),
    Setting(
        name="steps",
        kind="int",
        low=1,
        high=10**9,
        unit="steps",
        help="Steps in all; the schedule stretches.",
    ),
)


def declared_for(optimizer: str, objective: str) -> tuple[Setting, ...]:
    """Return all that can be set in a run: the learning rate, the objective's and the optimizer's own, the rest.

    Raises:
        UserError: There is no such optimizer or objective.
    """
    lr, *rest = LOOP_SETTINGS
    return (lr, *OBJECTIVES[objective].settings, *OPTIMIZERS[optimizer].settings, *rest)
