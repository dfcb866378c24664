"""Matthews' correlation of predicted and expected classes."""

from __future__ import annotations

import numpy as np

from nbllm.evaluation.columns import Array, Columns
from nbllm.evaluation.metrics.base import METRICS, quotient
from nbllm.evaluation.metrics.labels import LabelMetric, coded, counts_of_classes, weights_of


@METRICS.register("matthews_correlation")
class MatthewsCorrelation(LabelMetric):
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

    def compute(self, columns: Columns) -> float:
        """Return the correlation over all rows."""
        return float(self.resample(columns, np.ones((1, len(columns["predicted"]))))[0])

    def resample(self, columns: Columns, counts: Array) -> Array:
        """Return the correlation of each resample: (resample)."""
        known, predicted, expected = coded(columns)
        counts = counts * weights_of(columns, len(predicted))
        right, total = counts @ (predicted == expected), counts.sum(axis=1)
        one, two = (counts_of_classes(counts, codes, len(known)) for codes in (predicted, expected))
        covariance = right * total - (one * two).sum(axis=1)
        variances = (total**2 - (one**2).sum(axis=1)) * (total**2 - (two**2).sum(axis=1))
        return quotient(covariance, np.sqrt(np.maximum(variances, 0)), 0.0)
