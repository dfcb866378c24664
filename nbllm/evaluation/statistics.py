"""The uncertainty of measured figures, by bootstrap: rows or clusters of rows are resampled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nbllm.core.seeding import derive
from nbllm.evaluation.columns import Array, Columns
from nbllm.evaluation.config import EvaluationConfig

if TYPE_CHECKING:
    from nbllm.evaluation.metrics.base import Metric

_COUNTS_AT_ONCE = 1 << 22  # elements of float64: 32 MB


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure and its interval.

    Attributes:
        value: Over all rows.
        interval: Lower and upper bound; `None` for fewer than two rows or clusters, or a metric that is not
            resampled.
    """

    value: float
    interval: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Difference(Estimate):
    """By how much a figure differs between two measurements: after minus before, and its interval.

    Attributes:
        before: The figure of the first measurement.
        after: The figure of the second.
    """

    before: float
    after: float


def estimate(
    metric: Metric, columns: Columns, config: EvaluationConfig, clusters: NDArray[Any] | None = None
) -> Estimate:
    """Return a figure with its percentile bootstrap interval.

    Rows are drawn with replacement, as many as there are. Where rows are not independent (questions on one text,
    sentences of one document), whole clusters of them are drawn.

    Args:
        metric: Computes the figure.
        columns: By name, each (row).
        config: Confidence, resamples and seed.
        clusters: (row), equal for rows of one cluster; `None` where every row stands alone.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3; for clusters Davison and
    Hinkley 1997, Bootstrap Methods and their Application, section 3.8.
    """
    value = metric.compute(columns)
    if not metric.resampled:
        return Estimate(value, None)
    return Estimate(
        value, _interval(columns, lambda counts: metric.resample(columns, counts), config, clusters)
    )


def difference(
    metric: Metric,
    before: Columns,
    after: Columns,
    config: EvaluationConfig,
    clusters: NDArray[Any] | None = None,
) -> Difference:
    """Return by how much a figure differs between two measurements of the same examples.

    The difference is paired: each resample draws the same rows for both, so what makes an example hard for both
    cancels, and a small difference shows that the two separate intervals would hide.

    Args:
        metric: Computes the figure.
        before: Columns, each (row).
        after: The same of the second measurement, of the same examples in the same order.
        config: Confidence, resamples and seed.
        clusters: As for `estimate`.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3; Koehn 2004, "Statistical
    Significance Tests for Machine Translation Evaluation" (paired resampling).
    """

    def change(counts: Array) -> Array:
        return metric.resample(after, counts) - metric.resample(before, counts)

    one, two = metric.compute(before), metric.compute(after)
    interval = _interval(before, change, config, clusters) if metric.resampled else None
    return Difference(two - one, interval, before=one, after=two)


def recorded(metric: Metric, found: Estimate, config: EvaluationConfig) -> dict[str, Any]:
    """Return what a report records of any figure: its interval, and the metric that computed it."""
    return {
        "interval": found.interval,
        "confidence": config.confidence,
        "metric": metric.name,
        "better": metric.better,
    }


def _interval(
    columns: Columns,
    figures: Callable[[Array], Array],
    config: EvaluationConfig,
    clusters: NDArray[Any] | None,
) -> tuple[float, float] | None:
    """Return the percentile interval of figures, computed from how often each row is drawn: (resample, row)."""
    num_rows = len(next(iter(columns.values())))
    unit = None if clusters is None else _numbered(clusters)
    num_units = num_rows if unit is None else int(unit.max(initial=-1)) + 1
    if num_units < 2:
        return None
    draws = _draws(num_units, num_rows, config)
    found = np.concatenate([figures(counts if unit is None else counts[:, unit]) for counts in draws])
    found = found[~np.isnan(found)]
    if not len(found):
        return None
    tail = (1 - config.confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return float(low), float(high)


def _numbered(clusters: NDArray[Any]) -> NDArray[np.intp]:
    """Return for each row the number of its cluster."""
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters.tolist()], np.intp)


def _draws(num_units: int, num_rows: int, config: EvaluationConfig) -> Iterator[Array]:
    """Yield how often each unit is drawn, (resample, unit), in parts that memory holds."""
    generator = np.random.default_rng(derive(config.seed, "bootstrap"))
    uniform = np.full(num_units, 1 / num_units)
    left = config.resamples
    while left:
        now = min(left, max(1, _COUNTS_AT_ONCE // num_rows))
        yield generator.multinomial(num_units, uniform, size=now).astype(np.float64)
        left -= now
