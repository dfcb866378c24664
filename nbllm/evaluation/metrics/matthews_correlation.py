"""Matthews' correlation of predicted and expected classes."""

from __future__ import annotations

import numpy as np

from nbllm.evaluation.columns import Array, Columns
from nbllm.evaluation.metrics.base import METRICS, FunctionOfSums, Metric, quotient
from nbllm.evaluation.metrics.labels import LabelMetric, coded, weights_of


@METRICS.register("matthews_correlation")
class MatthewsCorrelation(LabelMetric, FunctionOfSums):
    """The correlation of predicted and expected classes, two or more; 0 where one of both has a single class.

    Source: Matthews 1975; Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation
    coefficient", eq. 8.
    """

    name = key = module = "matthews_correlation"
    label = "Matthews correlation"
    note = "1 for all right, 0 for chance"
    better = "higher"
    scale = (-1.0, 1.0)
    columns = ("predicted", "expected")
    source = "Matthews 1975; Gorodkin 2004"

    def statistics(self, columns: Columns) -> Array:
        """Return of each row its weight, whether it is right, and its classes: (row, 2 + 2 x class)."""
        known, predicted, expected = coded(columns)
        weights = weights_of(columns, len(predicted))[:, None]
        classes = np.arange(len(known))
        parts = [predicted[:, None] == classes, expected[:, None] == classes]
        counted = np.concatenate([np.ones_like(weights), (predicted == expected)[:, None], *parts], axis=1)
        found: Array = weights * counted
        return found

    def figures(self, sums: Array) -> Array:
        """Return the correlation of each set of counts."""
        total, right = sums[:, 0], sums[:, 1]
        predicted, expected = np.split(sums[:, 2:], 2, axis=1)
        covariance = right * total - (predicted * expected).sum(axis=1)
        variances = (total**2 - (predicted**2).sum(axis=1)) * (total**2 - (expected**2).sum(axis=1))
        scale = np.sqrt(np.maximum(variances, 0))
        return quotient(covariance, scale, 0.0)

    exchanged = Metric.exchanged  # two models need not predict the same classes
