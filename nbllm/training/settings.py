"""What may change while a run goes on: declared once here, offered by every front end, checked by the loop."""

from __future__ import annotations

from nbllm.runs.settings import Setting
from nbllm.training.config import TrainConfig

SETTINGS = (
    Setting(
        name="lr",
        kind="float",
        low=0.0,
        high=1.0,
        unit="",
        help="Peak learning rate; the schedule multiplies it.",
    ),
    Setting(
        name="beta1", kind="float", low=0.0, high=0.999999, unit="", help="AdamW's decay of the first moment."
    ),
    Setting(
        name="beta2",
        kind="float",
        low=0.0,
        high=0.999999,
        unit="",
        help="AdamW's decay of the second moment.",
    ),
    Setting(
        name="weight_decay",
        kind="float",
        low=0.0,
        high=10.0,
        unit="",
        help="Decoupled decay, on matrices only.",
    ),
    Setting(name="clip", kind="float", low=1e-6, high=1e6, unit="", help="Largest norm of the gradient."),
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


def initial_values(config: TrainConfig) -> dict[str, float | int]:
    """Return the settings' values at the start of a run."""
    return {setting.name: getattr(config, setting.name) for setting in SETTINGS}
