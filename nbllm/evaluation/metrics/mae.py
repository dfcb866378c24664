"""Mean absolute error of predicted numbers."""

from __future__ import annotations

import numpy as np

from nbllm.evaluation.columns import Array
from nbllm.evaluation.metrics.base import METRICS
from nbllm.evaluation.metrics.values import ErrorMetric


@METRICS.register("mae")
class MeanAbsoluteError(ErrorMetric):
    """The mean absolute difference of predicted and expected numbers."""

    name = key = module = "mae"
    label = "mean absolute error"
    note = "in units of the numbers"

    def errors(self, differences: Array) -> Array:
        """Return the absolute differences."""
        return np.abs(differences)
