"""A metric that is no ratio of sums, and has a setting."""

from __future__ import annotations

import dataclasses

import numpy as np

from nbllm.evaluation import METRICS, Metric


@METRICS.register("macro_f1")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MacroF1(Metric):
    """The mean of the F1 of every class.

    Args:
        empty: The F1 of a class that is neither predicted nor expected.
    """

    name = "macro_f1"
    label = "macro F1"
    note = "mean over the classes"
    better = "higher"
    scale = (0.0, 1.0)
    columns = ("predicted", "expected")

    empty: float = 0.0

    def compute(self, columns):
        predicted, expected = columns["predicted"], columns["expected"]
        scores = []
        for kind in np.union1d(predicted, expected):
            right = ((predicted == kind) & (expected == kind)).sum()
            counted = (predicted == kind).sum() + (expected == kind).sum()
            scores.append(2 * right / counted if counted else self.empty)
        return float(np.mean(scores))
