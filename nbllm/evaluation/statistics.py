"""The uncertainty of measured figures: Wilson's interval of a proportion, else the bootstrap over rows or clusters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nbllm.core.proportions import clustered_wilson, wilson
from nbllm.core.seeding import derive
from nbllm.evaluation.columns import Array, Columns
from nbllm.evaluation.config import EvaluationConfig

if TYPE_CHECKING:
    from nbllm.evaluation.metrics.base import Metric

WILSON, BOOTSTRAP = "wilson", "bootstrap"
_COUNTS_AT_ONCE = 1 << 22  # elements of float64: 32 MB


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure and its interval.

    Attributes:
        value: Over all rows.
        interval: Lower and upper bound; `None` for fewer than two rows, clusters or rows of any stratum, or a
            metric that is not resampled.
        method: How the interval was found: "wilson" or "bootstrap"; "" without one.
    """

    value: float
    interval: tuple[float, float] | None
    method: str = BOOTSTRAP

    def __post_init__(self) -> None:
        """Name no method where there is no interval."""
        if self.interval is None:
            object.__setattr__(self, "method", "")


@dataclasses.dataclass(frozen=True)
class Difference(Estimate):
    """By how much a figure differs between two measurements: after minus before, and its interval.

    Attributes:
        before: The figure of the first measurement.
        after: The figure of the second.
        error: Standard error of the difference; not a number without an interval.
        p_value: Of the paired bootstrap test (`bootstrap_p_value`); not a number without an interval.
    """

    before: float = math.nan
    after: float = math.nan
    error: float = math.nan
    p_value: float = math.nan


def estimate(
    metric: Metric, columns: Columns, config: EvaluationConfig, clusters: NDArray[Any] | None = None
) -> Estimate:
    """Return a figure with its interval.

    A proportion of rows has Wilson's interval. Of any other figure it is the percentile interval of the bootstrap: rows
    are drawn with replacement, as many as there are. Where rows are not independent (questions on one text, sentences
    of one document), Wilson's interval has the effective number of rows, and the bootstrap draws whole clusters. Where
    a figure is an average over fixed groups (`Metric.strata`), rows are drawn within each of them.

    Args:
        metric: Computes the figure.
        columns: By name, each (row).
        config: Confidence, resamples and seed.
        clusters: (row), equal for rows of one cluster; `None` where every row stands alone.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3; for clusters Davison and
    Hinkley 1997, Bootstrap Methods and their Application, section 3.8; for proportions see `wilson` and
    `clustered_wilson`.
    """
    value = metric.compute(columns)
    if not metric.resampled:
        return Estimate(value, None)
    outcomes = metric.outcomes(columns)
    if outcomes is not None:
        shares = _proportion_interval(outcomes, config.confidence, clusters)
        top = metric.scale[1]  # 100 for a percentage
        return Estimate(value, None if shares is None else (top * shares[0], top * shares[1]), WILSON)
    generator = np.random.default_rng(derive(config.seed, "bootstrap"))
    found = _bootstrapped(
        metric,
        columns,
        lambda counts: metric.resample(columns, counts),
        config.resamples,
        generator,
        clusters,
    )
    return Estimate(value, percentiles(found, config.confidence))


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
    one, two = metric.compute(before), metric.compute(after)
    if not metric.resampled:
        return Difference(two - one, None, before=one, after=two)
    generator = np.random.default_rng(derive(config.seed, "bootstrap"))
    found = paired_resamples(metric, before, after, config.resamples, generator, clusters)
    if len(found) < 2:
        return Difference(two - one, None, before=one, after=two)
    return Difference(
        two - one,
        percentiles(found, config.confidence),
        before=one,
        after=two,
        error=float(found.std(ddof=1)),
        p_value=bootstrap_p_value(found, two - one),
    )


def paired_resamples(
    metric: Metric,
    before: Columns,
    after: Columns,
    resamples: int,
    generator: np.random.Generator,
    clusters: NDArray[Any] | None = None,
) -> Array:
    """Return the difference, after minus before, of each of many resamples that draw the same rows for both.

    Of rows without clusters or strata these are the resamples of sacrebleu's paired bootstrap, for the same generator.

    Args:
        metric: Computes the figure.
        before: Columns, each (row).
        after: The same of the second measurement.
        resamples: How many.
        generator: Draws the rows.
        clusters: As for `estimate`.
    """

    def change(counts: Array) -> Array:
        return metric.resample(after, counts) - metric.resample(before, counts)

    return _bootstrapped(metric, before, change, resamples, generator, clusters)


def bootstrap_p_value(differences: Array, difference: float) -> float:
    """Return how probable a difference at least as large is where there is none, by the paired bootstrap.

    Args:
        differences: Of the resamples: (resample).
        difference: Of all rows.

    Source: Koehn 2004, section 4; Riezler and Maxwell 2005, "On Some Pitfalls in Automatic Evaluation and Significance
    Testing for MT" (the shift); computed as `sacrebleu.significance` does.
    """
    sizes = np.abs(differences)
    return p_value(sizes - sizes.mean(), abs(difference))


def p_value(statistics: Array, observed: float) -> float:
    """Return the share of statistics at least as large as the observed one, which is counted among them.

    `sacrebleu.significance` counts only larger ones. That is the same for figures that vary finely; for a share of few
    answers, where many exchanges give just the observed difference, it would find differences that are not there, and
    identical models would differ.
    """
    least = observed - 1e-12 * max(1.0, observed)  # sums in another order may differ in the last bits
    return (int((statistics >= least).sum()) + 1) / (len(statistics) + 1)


def recorded(metric: Metric, found: Estimate, config: EvaluationConfig) -> dict[str, Any]:
    """Return what a report records of any figure: its interval, and the metric that computed it."""
    return {
        "interval": found.interval,
        "confidence": config.confidence,
        "metric": metric.name,
        "better": metric.better,
    }


def percentiles(found: Array, confidence: float) -> tuple[float, float] | None:
    """Return the interval that holds the middle of the figures of resamples; `None` where there are none."""
    if not len(found):
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return float(low), float(high)


def clusters_of(columns: Columns, name: str) -> NDArray[Any] | None:
    """Return the cluster of each row, (row); `None` where every row stands alone.

    Rows that are all of one cluster stand alone, too: a figure of a single subject says how well a model knows that
    subject, whose questions are then what was drawn. How much subjects differ cannot be learned from one.

    Args:
        columns: By name, each (row).
        name: Of the column of clusters; "" for none.
    """
    if not name:
        return None
    clusters: NDArray[Any] = columns[name]
    return clusters if len(set(clusters.tolist())) > 1 else None


def numbered(clusters: NDArray[Any]) -> NDArray[np.intp]:
    """Return for each row the number of its cluster, from 0."""
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters.tolist()], np.intp)


def _proportion_interval(
    outcomes: Array, confidence: float, clusters: NDArray[Any] | None
) -> tuple[float, float] | None:
    if clusters is not None:
        return clustered_wilson(outcomes, numbered(clusters), confidence)
    return wilson(float(outcomes.sum()), len(outcomes), confidence) if len(outcomes) else None


def _bootstrapped(
    metric: Metric,
    columns: Columns,
    figures: Callable[[Array], Array],
    resamples: int,
    generator: np.random.Generator,
    clusters: NDArray[Any] | None,
) -> Array:
    """Return the figures of resamples, (resample), those left out that are not a number.

    Args:
        metric: Says whether rows are drawn within strata.
        columns: By name, each (row).
        figures: Computes the figures of how often each row is drawn: (resample, row).
        resamples: How many.
        generator: Draws the rows.
        clusters: (row), or `None`.
    """
    num_rows = len(next(iter(columns.values())))
    units = None if clusters is None or metric.strata else numbered(clusters)
    if metric.strata:
        strata = numbered(columns[metric.strata])
        if (
            np.bincount(strata, minlength=1).min() < 2
        ):  # from one row, nothing is known of how its group varies
            return np.empty(0)
    else:
        strata = np.zeros(num_rows if units is None else int(units.max(initial=-1)) + 1, np.intp)
    if len(strata) < 2:
        return np.empty(0)
    draws = _draws(strata, num_rows, resamples, generator)
    found: Array = np.concatenate(
        [figures(counts if units is None else counts[:, units]) for counts in draws]
    )
    return found[~np.isnan(found)]


def _draws(
    strata: NDArray[np.intp], num_rows: int, resamples: int, generator: np.random.Generator
) -> Iterator[Array]:
    """Yield how often each unit is drawn within its stratum, (resample, unit), in parts that memory holds."""
    groups = [np.flatnonzero(strata == number) for number in range(int(strata.max()) + 1)]
    left = resamples
    while left:
        now = min(left, max(1, _COUNTS_AT_ONCE // num_rows))
        counts = np.empty((now, len(strata)))
        for group in groups:
            drawn = generator.choice(len(group), size=(now, len(group)))
            drawn += len(group) * np.arange(now)[:, None]
            times = np.bincount(drawn.ravel(), minlength=now * len(group))
            counts[:, group] = times.reshape(now, len(group))
        yield counts
        left -= now
