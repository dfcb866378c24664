"""A metric that is a mean over rows."""

from __future__ import annotations

import numpy as np

from nbllm.evaluation import METRICS, RatioOfSums


@METRICS.register("accuracy")
class Accuracy(RatioOfSums):
    """The share of examples that are right."""

    name = "accuracy"
    label = "accuracy"
    better = "higher"
    scale = (0.0, 1.0)
    columns = ("correct",)

    def terms(self, columns):
        return columns["correct"], np.ones(len(columns["correct"]))
