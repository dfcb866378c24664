"""Precision of classes: how many of those predicted are right."""

from __future__ import annotations

import dataclasses

from nbllm.evaluation.columns import Array
from nbllm.evaluation.metrics.base import METRICS
from nbllm.evaluation.metrics.labels import ClassMetric


@METRICS.register("precision")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision(ClassMetric):
    """The share of the examples predicted as a class that are of it, of one class or averaged.

    Source: van Rijsbergen 1979, Information Retrieval, chapter 7.
    """

    name = key = module = "precision"
    label = "precision"
    note = "share of those predicted as a class that are of it"
    source = "van Rijsbergen 1979, Information Retrieval, chapter 7"

    def of_counts(self, both: Array, predicted: Array, expected: Array) -> tuple[Array, Array]:
        """Return numerator and denominator of each class's precision."""
        return both, predicted
