"""All metrics as a table: what each computes, its range, what it takes and where it was published."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, overload

from nbllm.core.text_table import text_table
from nbllm.evaluation.metrics.base import Metric, PredictionMetric, options_of
from nbllm.evaluation.metrics.catalogue import METRICS

HEADER = ("metric", "key", "range", "better", "figure", "takes", "conventions", "source")
_SHOWN = 5  # columns that a line of text and a notebook's cell have room for


@dataclasses.dataclass(frozen=True)
class MetricEntry:
    """One figure.

    Attributes:
        module: What `nb.evaluation.metric` takes; "" for a figure of a task's rows alone.
        kind: The class; its fields are the settings.
    """

    module: str
    kind: type[Metric]

    @property
    def key(self) -> str:
        """Its key in what `compute` returns; of a task's figure, its name in a report."""
        return self.kind.key if issubclass(self.kind, PredictionMetric) else self.kind.name

    @property
    def range(self) -> str:
        """Its lowest and highest value in words: "0 to 100"."""
        low, high = self.kind.scale
        if math.isinf(high):
            return "any" if math.isinf(low) else f"{low:g} or more"
        return f"{high:g} or less" if math.isinf(low) else f"{low:g} to {high:g}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """What it takes, by name; of a task's figure, the columns."""
        return tuple(self.kind.inputs) if issubclass(self.kind, PredictionMetric) else self.kind.columns

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that are conventions of the figure, with their defaults."""
        return {field.name: field.default for field in dataclasses.fields(self.kind)}

    @property
    def options(self) -> tuple[str, ...]:
        """Further arguments of `compute`."""
        if not issubclass(self.kind, PredictionMetric):
            return ()
        return tuple(sorted(options_of(self.kind.rows) | options_of(self.kind.results)))

    def row(self) -> tuple[str, ...]:
        """Return the cells of the table, in the order of `HEADER`."""
        takes = ", ".join(self.inputs) if self.module else f"rows: {', '.join(self.inputs)}"
        settings = ", ".join(f"{name}={_short(value)}" for name, value in self.settings.items())
        return (
            self.module or "(of a task)",
            self.key,
            self.range,
            self.kind.better,
            f"{self.kind.label}: {self.kind.note}" if self.kind.note else self.kind.label,
            ", ".join([takes, *self.options]),
            settings,
            self.kind.source,
        )


class MetricList(Sequence[MetricEntry]):
    """Metrics, shown in a cell as tables; `nb.evaluation.metric(name)` makes one. As text, the first columns stand.

    Args:
        entries: The figures.
    """

    def __init__(self, entries: Sequence[MetricEntry]) -> None:
        self._entries = tuple(entries)

    @overload
    def __getitem__(self, key: int) -> MetricEntry: ...
    @overload
    def __getitem__(self, key: slice) -> MetricList: ...
    def __getitem__(self, key: int | slice) -> MetricEntry | MetricList:
        return MetricList(self._entries[key]) if isinstance(key, slice) else self._entries[key]

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[MetricEntry]:
        return iter(self._entries)

    def __repr__(self) -> str:
        return text_table([row[:_SHOWN] for row in (HEADER, *(each.row() for each in self))])

    def _repr_html_(self) -> str:
        from nbllm.core.html import fragment, table

        rows = [each.row() for each in self]
        shown = table([row[:_SHOWN] for row in rows], HEADER[:_SHOWN], row_headers=True)
        more = table(
            [(*row[:2], *row[_SHOWN:]) for row in rows], (*HEADER[:2], *HEADER[_SHOWN:]), row_headers=True
        )
        summary = "What each takes, its conventions and its source"
        return fragment(f"{shown}<details><summary>{summary}</summary>{more}</details>")


def list_metrics() -> MetricList:
    """Return every metric: those of predictions, by the module that `nb.evaluation.metric` makes, then those of tasks.

    Opens no model and needs no network.
    """
    entries = [MetricEntry(getattr(METRICS[name], "module", ""), METRICS[name]) for name in METRICS]
    return MetricList(sorted(entries, key=lambda each: (not each.module, each.module)))


def _short(value: object) -> str:
    return repr(value) if isinstance(value, str) else str(value)
