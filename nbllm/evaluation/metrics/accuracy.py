"""Accuracy: the share of examples that are right, over all of them or as the mean over groups."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbllm.evaluation.columns import Array, Columns
from nbllm.evaluation.metrics.base import METRICS, MacroAverage, RatioOfSums
from nbllm.evaluation.metrics.labels import LabelMetric, weights_of


@METRICS.register("accuracy")
class Accuracy(LabelMetric, RatioOfSums):
    """The share of examples that are right; a tie among several choices counts for its share."""

    name = key = module = "accuracy"
    label = "accuracy"
    note = "share of examples that are right"
    source = "as in scikit-learn"
    better = "higher"
    scale = (0.0, 1.0)
    columns = ("correct",)

    def terms(self, columns: Columns) -> tuple[Array, Array]:
        """Return the weighted credit and the weight of each example."""
        weights = weights_of(columns, len(columns["correct"]))
        return weights * columns["correct"], weights

    def outcomes(self, columns: Columns) -> Array | None:
        """Return the credit of each example: 0, 1, or for a tie in between, which makes Wilson's interval wider."""
        return credits_of(*self.terms(columns))

    def results(self, columns: Columns, *, normalize: bool = True) -> dict[str, Any]:
        """Return the share, or the number of examples that are right.

        Args:
            columns: By name, each (row).
            normalize: Whether the share is returned.
        """
        return {"accuracy": self.compute(columns) if normalize else float(self.sums(columns)[0])}


@METRICS.register("normalized_accuracy")
class NormalizedAccuracy(RatioOfSums):
    """Accuracy where each choice's log-probability is divided by its length, by which unit the task says."""

    name = "normalized_accuracy"
    label = "accuracy, normalized by length"
    note = "the log-likelihood of each choice is divided by its length"
    better = "higher"
    scale = (0.0, 1.0)
    columns = ("correct_normalized",)

    def terms(self, columns: Columns) -> tuple[Array, Array]:
        """Return the credit of each example, and one for each."""
        return columns["correct_normalized"], np.ones(len(columns["correct_normalized"]))

    def outcomes(self, columns: Columns) -> Array | None:
        """Return the credit of each example: 0, 1, or for a tie in between, which makes Wilson's interval wider."""
        return credits_of(*self.terms(columns))


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


def credits_of(credits: Array, weights: Array) -> Array | None:
    """Return the credits where each example counts alike and none is less than 0 or more than 1."""
    return credits if (weights == 1).all() and ((credits >= 0) & (credits <= 1)).all() else None
