"""The contract of a task: examples from data, requests from an example, a row from a model's answers."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from nbllm.core.config import PlainConfig
from nbllm.core.registry import Registry
from nbllm.core.report.sections import Measurements, Section
from nbllm.evaluation.columns import Row
from nbllm.evaluation.examples import Source
from nbllm.evaluation.metrics.base import Metric
from nbllm.evaluation.requests import Request

if TYPE_CHECKING:
    from nbllm.evaluation.measuring import Measured
    from nbllm.evaluation.requests import Answer

TASKS: Registry[type[Task]] = Registry("task")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(PlainConfig, abc.ABC):
    """A task. Subclasses are registered in `TASKS`; their fields are the task's settings.

    Attributes:
        name: The name it is registered by.
        label: Its name in a report.
        noun: What its data are, without an article: "held-out text".
        unit: What an example is, in the plural.
        cluster: The column whose equal values mark rows that are not independent (questions on one text); "" for
            none.
        shown: How many rows a page shows.
        has_long_prompts: Whether its prompts may be longer than a context; rows then say what was left out.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    noun: ClassVar[str] = "data"
    unit: ClassVar[str] = "examples"
    cluster: ClassVar[str] = ""
    shown: ClassVar[int] = 10
    has_long_prompts: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def metrics(self) -> tuple[Metric, ...]:
        """What is computed from the rows, the most important first; the first three stand in a report's summary."""

    @abc.abstractmethod
    def examples(self, source: Source) -> tuple[Sequence[Mapping[str, Any]], str]:
        """Return the examples, and a description of where they come from.

        Args:
            source: The data that were given.

        Returns:
            Mappings of values that JSON can hold, since the fingerprint of the examples is computed from them.

        Raises:
            DataError: The task cannot read the data.
        """

    def asked(self, example: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what of an example is looked for in training text: all of it, unless a task knows better."""
        return example

    @abc.abstractmethod
    def requests(self, example: Mapping[str, Any]) -> Sequence[Request]:
        """Return the requests to the model for an example."""

    @abc.abstractmethod
    def score(self, example: Mapping[str, Any], answers: Sequence[Answer]) -> Row:
        """Return the row of an example: the same columns for every example.

        Args:
            example: The example.
            answers: To its requests, in their order.
        """

    def sentence(self, measured: Measured) -> str:
        """Return the result in one sentence for the report's summary, without the final full stop."""
        first = measured.measurements[0]
        interval = f" ({first.interval_text})" if first.interval else ""
        value = f"{first.value_text} {first.unit}".rstrip()
        return f"{self.label}: {first.name} is {value}{interval}"

    def notes(self, measured: Measured) -> list[str]:
        """Return sentences on how the figures were measured, for the report."""
        return [measured.left_out]

    def sections(self, measured: Measured) -> list[Section]:
        """Return the task's part of a report."""
        sentences = [f"Measured on {measured.extent}.", measured.intervals, *self.notes(measured)]
        return [
            Measurements(
                title=measured.subject.name(self.label),
                note=" ".join(filter(None, sentences)),
                measurements=measured.measurements,
            )
        ]
