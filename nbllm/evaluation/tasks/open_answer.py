"""The base of tasks whose answer a model writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from nbllm.core.config import check_positive
from nbllm.evaluation.columns import Row
from nbllm.evaluation.metrics.base import Metric, PredictionMetric
from nbllm.evaluation.requests import Generate
from nbllm.evaluation.tasks.few_shot import FewShotTask
from nbllm.inference.config import SamplingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenAnswer(FewShotTask):
    """A task of writing, greedily. An item has "question" and "references": all texts that are right.

    Args:
        max_new_tokens: How many tokens an answer may have.

    Attributes:
        stop: Texts that end an answer.
    """

    unit = "questions"
    stop: ClassVar[tuple[str, ...]]

    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        """Check the number of tokens."""
        super().__post_init__()
        check_positive(self, "max_new_tokens")

    def solution(self, item: Mapping[str, Any]) -> str:
        """Return the first reference."""
        return f" {item['references'][0]}"

    def requests(self, example: Mapping[str, Any]) -> Sequence[Generate]:
        """Return the prompt to continue."""
        sampling = SamplingConfig(temperature=0.0, max_new_tokens=self.max_new_tokens, stop=self.stop)
        return [Generate(self.prompt(example), sampling)]

    def score(self, example: Mapping[str, Any], answers: Sequence[Any]) -> Row:
        """Return the row of a question: what was written, and the columns of the metrics."""
        (written,) = answers
        return {
            **({self.cluster: example[self.cluster]} if self.cluster else {}),
            "question": example["question"],
            "references": tuple(example["references"]),
            "written": written.text,
            "stopped_by": written.stopped_by,
            **self.judged(written.text, example["references"]),
        }

    def judged(self, written: str, references: Sequence[str]) -> Row:
        """Return the columns that the metrics read, each of which compares the answer with the references."""
        row: dict[str, Any] = {}
        for metric in self.metrics:
            if isinstance(metric, PredictionMetric):
                row |= metric.row(self.extracted(written), self.compared(references))
        return row

    def extracted(self, written: str) -> str:
        """Return what of a written text is the answer."""
        return written.strip()

    def compared(self, references: Sequence[str]) -> Sequence[str]:
        """Return the references as the metrics take them."""
        return list(references)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """To be defined by each task."""
        raise NotImplementedError
