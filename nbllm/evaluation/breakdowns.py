"""What one figure hides: its bars by group, and how far a model's confidence can be believed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from nbllm.core.proportions import wilson
from nbllm.core.report.sections import Bar, Bars, Chart, Line, Section
from nbllm.evaluation.columns import Array, Columns

if TYPE_CHECKING:
    from nbllm.evaluation.measuring import Measured

_MOST_GROUPS = 120
_BINS = 10


def breakdowns(measured: Measured) -> Iterator[Section]:
    """Yield the bars of a proportion by group, and the reliability diagram where probabilities are known."""
    yield from group_bars(measured)
    yield from reliability(measured)


def group_bars(measured: Measured) -> Iterator[Bars]:
    """Yield the first figure of each group of rows, where it is a mean of right and wrong, the best group first."""
    task, columns = measured.task, measured.columns
    metric = next((each for each in task.metrics if each.of_model), None)
    group = task.cluster
    if metric is None or not group or metric.outcomes(columns) is None:
        return
    outcomes = metric.outcomes(columns)
    assert outcomes is not None
    names = [str(each) for each in columns[group].tolist()]
    found: dict[str, list[float]] = {}
    for name, outcome in zip(names, outcomes.tolist(), strict=True):
        found.setdefault(name, []).append(outcome)
    if not 1 < len(found) <= _MOST_GROUPS:
        return
    top = metric.scale[1]  # 100 for a percentage
    bars = []
    for name, values in found.items():
        low, high = wilson(sum(values), len(values), measured.config.confidence)
        share, interval = sum(values) / len(values), (top * low, top * high)
        bars.append(Bar(name=name.replace("_", " "), value=top * share, interval=interval, count=len(values)))
    bars.sort(key=lambda bar: (-bar.value, bar.name))
    yield Bars(
        bars=tuple(bars),
        x_label=metric.label,
        unit=task.unit,
        marked=top * float(outcomes.mean()),
        caption=f"{metric.label[:1].upper()}{metric.label[1:]} by {group}, with Wilson's interval of each "
        f"{group}; the dashed line is that of all {task.unit}.",
    )


def reliability(measured: Measured) -> Iterator[Chart]:
    """Yield the reliability diagram of a task of choices: how often the model is right, by how sure it is."""
    from nbllm.evaluation.metrics.expected_calibration_error import ExpectedCalibrationError

    columns = confidences(measured.columns)
    if columns is None:
        return
    metric = ExpectedCalibrationError(num_bins=_BINS)
    points = metric.reliability_diagram(columns)
    if len(points) < 2:
        return
    error = metric.compute(columns)
    x = tuple(point["confidence"] for point in points)
    yield Chart(
        x_label="probability that the model gives its answer, among the choices",
        y_label="share that is right",
        lines=(
            Line(name="model", x=x, y=tuple(point["accuracy"] for point in points)),
            Line(name="perfectly calibrated", x=(0.0, 1.0), y=(0.0, 1.0)),
        ),
        caption=(
            f"Reliability diagram, {_BINS} bins of equal width. Below the straight line the model is too sure; the "
            f"expected calibration error is {error:.3f}."
        ),
    )


def confidences(columns: Columns) -> Columns | None:
    """Return the confidence in each answer and whether it is right, of rows with the log-probabilities of choices.

    The confidence is the probability of the likeliest choice among all choices of the example.

    Returns:
        "confidence" and "correct", each (row); `None` where the rows do not have them.
    """
    if not {"log_probabilities", "correct"} <= columns.keys():
        return None
    values: list[float] = []
    for logs in columns["log_probabilities"].tolist():
        if not isinstance(logs, tuple) or not logs or not all(isinstance(each, float) for each in logs):
            return None
        highest = max(logs)
        values.append(1 / sum(math.exp(each - highest) for each in logs))
    correct: Array = np.asarray(columns["correct"], np.float64)
    return {"confidence": np.array(values), "correct": correct}
