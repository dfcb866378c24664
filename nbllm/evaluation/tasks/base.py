"""What a task is: a function from a model and documents to a part of a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from nbllm.core.registry import Registry
from nbllm.core.report.figures import Metric, Subject
from nbllm.core.report.sections import Section
from nbllm.evaluation.config import EvaluationConfig

if TYPE_CHECKING:
    from nbllm.lm import LM


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What a task found.

    Attributes:
        headline: The figures that belong into a report's summary, the most important first.
        sentence: What was found, for a reader who reads nothing else.
        sections: The task's part of the report.
    """

    headline: tuple[Metric, ...]
    sentence: str
    sections: tuple[Section, ...]


class Task(Protocol):
    """Measures a model."""

    def __call__(
        self,
        lm: LM,
        texts: Sequence[str],
        config: EvaluationConfig,
        *,
        subject: Subject,
        show_progress: bool,
    ) -> TaskResult:
        """Measure `lm` on the documents `texts`, which are those of `subject`."""
        ...


TASKS: Registry[Task] = Registry("task")
