"""Mean squared error of predicted numbers, and its root."""

from __future__ import annotations

import dataclasses

import numpy as np

from nbllm.evaluation.columns import Array
from nbllm.evaluation.metrics.base import METRICS
from nbllm.evaluation.metrics.values import ErrorMetric


@METRICS.register("mse")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanSquaredError(ErrorMetric):
    """The mean squared difference of predicted and expected numbers.

    Args:
        squared: Whether it is left squared; otherwise the root of the mean is returned.
    """

    name = key = module = "mse"
    label = "mean squared error"
    note = "in squared units of the numbers"

    squared: bool = True

    def errors(self, differences: Array) -> Array:
        """Return the squared differences."""
        return differences**2

    def finish(self, ratio: Array) -> Array:
        """Return the error, squared or not."""
        return ratio if self.squared else np.sqrt(ratio)
