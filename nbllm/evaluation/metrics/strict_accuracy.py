"""Accuracy of answers that must stand where they are asked for."""

from __future__ import annotations

import numpy as np

from nbllm.evaluation.columns import Array, Columns
from nbllm.evaluation.metrics.base import METRICS, RatioOfSums


@METRICS.register("strict_accuracy")
class StrictAccuracy(RatioOfSums):
    """The share of examples whose answer is right and stands in the form that was asked for."""

    name = "strict_accuracy"
    label = "accuracy, strict form"
    note = "the answer must stand in the form that was asked for"
    better = "higher"
    scale = (0.0, 1.0)
    columns = ("correct_strict",)

    def terms(self, columns: Columns) -> tuple[Array, Array]:
        """Return the credit of each example, and one for each."""
        return columns["correct_strict"], np.ones(len(columns["correct_strict"]))
