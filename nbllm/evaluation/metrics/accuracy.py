"""Accuracy: the share of examples that are right, over all of them or as the mean over groups."""

from __future__ import annotations

import numpy as np

from nbllm.evaluation.columns import Array, Columns
from nbllm.evaluation.metrics.base import METRICS, MacroAverage, RatioOfSums


@METRICS.register("accuracy")
class Accuracy(RatioOfSums):
    """The share of examples that are right; a tie among several choices counts for its share."""

    name = "accuracy"
    label = "accuracy"
    better = "higher"
    scale = (0.0, 1.0)
    columns = ("correct",)

    def terms(self, columns: Columns) -> tuple[Array, Array]:
        """Return the credit of each example, and one for each."""
        return columns["correct"], np.ones(len(columns["correct"]))


@METRICS.register("normalized_accuracy")
class NormalizedAccuracy(Accuracy):
    """Accuracy where each choice's log-probability is divided by its length, by which unit the task says."""

    name = "normalized_accuracy"
    label = "accuracy, normalized by length"
    columns = ("correct_normalized",)

    def terms(self, columns: Columns) -> tuple[Array, Array]:
        """Return the credit of each example, and one for each."""
        return columns["correct_normalized"], np.ones(len(columns["correct_normalized"]))


@METRICS.register("macro_accuracy")
class MacroAccuracy(MacroAverage):
    """The mean of the accuracies of the subjects, each of which counts alike however many examples it has."""

    name = "macro_accuracy"
    label = "macro-averaged accuracy"
    note = "the mean over subjects"
    better = "higher"
    scale = (0.0, 1.0)
    columns = ("correct", "subject")
    strata = "subject"

    def terms(self, columns: Columns) -> tuple[Array, Array]:
        """Return the credit of each example, and one for each."""
        return Accuracy().terms(columns)
