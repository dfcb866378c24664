"""F1 of classes: the harmonic mean of precision and recall."""

from __future__ import annotations

import dataclasses

from nbllm.evaluation.columns import Array
from nbllm.evaluation.metrics.base import METRICS
from nbllm.evaluation.metrics.labels import ClassMetric


@METRICS.register("f1")
@dataclasses.dataclass(frozen=True, kw_only=True)
class F1(ClassMetric):
    """The harmonic mean of precision and recall, of one class or averaged over classes.

    Source: van Rijsbergen 1979, Information Retrieval, chapter 7.
    """

    name = key = module = "f1"
    label = "F1"
    note = "harmonic mean of precision and recall"
    source = "van Rijsbergen 1979, Information Retrieval, chapter 7"

    def of_counts(self, both: Array, predicted: Array, expected: Array) -> tuple[Array, Array]:
        """Return numerator and denominator of each class's F1."""
        return 2 * both, predicted + expected
