"""What a metric is: a named ratio of sums over documents, and how it is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from nbllm.core.registry import Registry
from nbllm.core.report.sections import Metric
from nbllm.evaluation.config import EvaluationConfig
from nbllm.evaluation.statistics import Array, ratio_of_sums

METRICS: Registry[RatioMetric] = Registry("metric")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RatioMetric:
    """A figure that is a function of two sums over documents.

    Args:
        label: Its name in a report.
        unit: "" for none.
        note: How it is read, in a few words.
        terms: From a task's results to (numerators, denominators), each (document).
        finish: A monotonic function of the ratio.
    """

    label: str
    unit: str = ""
    note: str = ""
    terms: Callable[[Any], tuple[Array, Array]]
    finish: Callable[[Array], Array] = lambda ratio: ratio

    def measure(self, results: Any, config: EvaluationConfig) -> Metric:
        """Return the figure with its interval."""
        found = ratio_of_sums(*self.terms(results), config, finish=self.finish)
        return Metric(
            name=self.label,
            value=found.value,
            unit=self.unit,
            interval=found.interval,
            confidence=config.confidence,
            note=self.note,
        )
