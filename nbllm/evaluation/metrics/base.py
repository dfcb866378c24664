"""What a metric is: a named ratio of sums over documents, and how it is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from nbllm.core.registry import Registry
from nbllm.core.report.figures import Metric, PerDocument, Subject
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
        of_model: Whether it depends on the model, so that two models are compared by it.
    """

    label: str
    unit: str = ""
    note: str = ""
    terms: Callable[[Any], tuple[Array, Array]]
    finish: Callable[[Array], Array] = lambda ratio: ratio
    of_model: bool = True

    def measure(self, results: Any, config: EvaluationConfig, subject: Subject) -> Metric:
        """Return the figure with its interval, and what another report is compared by.

        Args:
            results: Of the task.
            config: Of the evaluation.
            subject: What was measured.
        """
        numerators, denominators = self.terms(results)
        found = ratio_of_sums(numerators, denominators, config, finish=self.finish)
        return Metric(
            name=subject.name(self.label),
            value=found.value,
            unit=self.unit,
            interval=found.interval,
            confidence=config.confidence,
            note=self.note,
            per_document=PerDocument(
                subject=subject,
                figure=self.label,
                numerators=tuple(numerators),
                denominators=tuple(denominators),
            )
            if self.of_model
            else None,
        )
