"""Recall of classes: how many of those expected are found."""

from __future__ import annotations

import dataclasses

from nbllm.evaluation.columns import Array
from nbllm.evaluation.metrics.base import METRICS
from nbllm.evaluation.metrics.labels import ClassMetric


@METRICS.register("recall")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Recall(ClassMetric):
    """The share of the examples of a class that are predicted as it, of one class or averaged.

    Source: van Rijsbergen 1979, Information Retrieval, chapter 7.
    """

    name = key = module = "recall"
    label = "recall"
    note = "share of those of a class that are predicted as it"
    source = "van Rijsbergen 1979, Information Retrieval, chapter 7"

    def of_counts(self, both: Array, predicted: Array, expected: Array) -> tuple[Array, Array]:
        """Return numerator and denominator of each class's recall."""
        return both, expected
