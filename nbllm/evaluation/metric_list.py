"""All metrics as a table: what each computes, its range, what it takes and where it was published."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from nbllm.evaluation.entry_list import EntryList
from nbllm.evaluation.metrics.base import Metric, PredictionMetric, options_of
from nbllm.evaluation.metrics.catalogue import METRICS


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
        """Return the cells of the table."""
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


class MetricList(EntryList[MetricEntry]):
    """Metrics, shown in a cell as tables; `nb.evaluation.metric(name)` makes one."""

    header = ("metric", "key", "range", "better", "figure", "takes", "conventions", "source")
    shown = 5
    named = 2
    folded = "What each takes, its conventions and its source"


def list_metrics() -> MetricList:
    """Return every metric: those of predictions, by the module that `nb.evaluation.metric` makes, then those of tasks.

    Opens no model and needs no network.
    """
    entries = [MetricEntry(getattr(METRICS[name], "module", ""), METRICS[name]) for name in METRICS]
    return MetricList(sorted(entries, key=lambda each: (not each.module, each.module)))


def _short(value: object) -> str:
    return repr(value) if isinstance(value, str) else str(value)
