"""The contract of a metric: a figure computed from columns with one row an example."""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import ClassVar, Literal

import numpy as np

from nbllm.core.config import PlainConfig
from nbllm.core.registry import Registry
from nbllm.evaluation.columns import Array, Columns, take

METRICS: Registry[type[Metric]] = Registry("metric")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric(PlainConfig, abc.ABC):
    """A function from columns to one figure. Subclasses are registered in `METRICS`; their fields are settings.

    Attributes:
        name: The name it is registered by; comparisons find it by this.
        label: Its name in a report.
        unit: "" for none.
        note: How it is read, in a few words.
        better: "lower" or "higher"; "" where neither is better.
        scale: The lowest and highest value that it can have.
        columns: The columns that it reads.
        of_model: Whether it depends on the model, so that two models are compared by it.
        comparable_by: Columns that two models must agree in, row by row, for the figure to compare them: a figure
            per token compares only models that cut the text into as many tokens.
        resampled: Whether an interval is computed by resampling rows.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    unit: ClassVar[str] = ""
    note: ClassVar[str] = ""
    better: ClassVar[Literal["lower", "higher", ""]]
    scale: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    columns: ClassVar[tuple[str, ...]]
    of_model: ClassVar[bool] = True
    comparable_by: ClassVar[tuple[str, ...]] = ()
    resampled: ClassVar[bool] = True

    def title(self, data: str) -> str:
        """Return the label with the name of the data, "" for none: "bits per byte on pydocs"."""
        return f"{self.label} on {data}" if data else self.label

    @abc.abstractmethod
    def compute(self, columns: Columns) -> float:
        """Return the figure; not a number where there is none (nothing to divide by).

        Args:
            columns: By name, each (row).
        """

    def resample(self, columns: Columns, counts: Array) -> Array:
        """Return the figure of each of many resamples: (resample).

        Args:
            columns: By name, each (row).
            counts: (resample, row), how often each row is drawn.
        """
        read = {name: columns[name] for name in self.columns}
        indices = np.arange(counts.shape[1])
        drawn = (np.repeat(indices, times.astype(np.intp)) for times in counts)
        return np.array([self.compute(take(read, rows)) for rows in drawn], np.float64)


class RatioOfSums(Metric):
    """A figure that is a function of two sums over rows, which resamples in one matrix multiplication.

    The ratio of sums, not the mean of ratios, is what a corpus is measured by: a long document counts for more.
    """

    @abc.abstractmethod
    def terms(self, columns: Columns) -> tuple[Array, Array]:
        """Return numerators and denominators, each (row); denominators are not negative."""

    def finish(self, ratio: Array) -> Array:
        """Return the figure of a ratio, elementwise: a monotonic function."""
        return ratio

    def compute(self, columns: Columns) -> float:
        """Return the figure over all rows."""
        numerators, denominators = self.terms(columns)
        return float(self.finish(_ratio(numerators.sum(), denominators.sum())))

    def resample(self, columns: Columns, counts: Array) -> Array:
        """Return the figure of each resample: (resample)."""
        sums = counts @ np.stack(self.terms(columns), axis=1)
        return self.finish(_ratio(sums[:, 0], sums[:, 1]))


def _ratio(numerators: Array, denominators: Array) -> Array:
    """Return the ratios; where there is nothing to divide by, not a number."""
    ratios = np.full(np.shape(numerators), np.nan)
    np.divide(numerators, denominators, out=ratios, where=np.asarray(denominators) > 0)
    return ratios
