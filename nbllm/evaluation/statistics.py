"""How sure a measured figure is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nbllm.core.seeding import derive
from nbllm.evaluation.config import EvaluationConfig

Array = NDArray[np.float64]
_COUNTS_AT_ONCE = 1 << 22  # numbers, 32 MB


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure and its interval.

    Attributes:
        value: Over all documents.
        interval: Lower and upper bound; `None` for fewer than two documents, which say nothing of their
            spread.
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


def ratio_of_sums(
    numerators: Array,
    denominators: Array,
    config: EvaluationConfig,
    *,
    finish: Callable[[Array], Array] = lambda ratio: ratio,
) -> Estimate:
    """Return `finish(sum of numerators / sum of denominators)` with a percentile bootstrap interval.

    Documents are what is drawn anew, with replacement, since tokens of one document are not independent. The
    ratio of sums, not the mean of ratios, is what a corpus is measured by: a long document counts for more.

    Args:
        numerators: (document).
        denominators: (document), not negative.
        config: Confidence, resamples and seed.
        finish: A monotonic function of the ratio, as exp for a perplexity.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.
    """
    assert numerators.shape == denominators.shape
    value = float(finish(_ratio(numerators.sum(), denominators.sum())))
    columns = np.stack([numerators, denominators], axis=1)
    bounds = _interval(columns, lambda sums: _ratio(sums[:, 0], sums[:, 1]), config)
    if bounds is None:
        return Estimate(value, None)
    return Estimate(value, (float(finish(bounds[0])), float(finish(bounds[1]))))


def difference_of_ratios(
    before: tuple[Array, Array],
    after: tuple[Array, Array],
    config: EvaluationConfig,
    *,
    finish: Callable[[Array], Array] = lambda ratio: ratio,
) -> Difference:
    """Return by how much a figure differs between two measurements of the same documents.

    The difference is paired: each resample draws the same documents for both, so what makes a document hard for
    both cancels, and a small difference shows that the two separate intervals would hide.

    Args:
        before: Numerators and denominators, each (document).
        after: The same of the second measurement, of the same documents in the same order.
        config: Confidence, resamples and seed.
        finish: A monotonic function of the ratio, as exp for a perplexity.

    Returns:
        Both figures, each as `ratio_of_sums` has it, and their difference.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3; Koehn 2004, "Statistical
    Significance Tests for Machine Translation Evaluation" (paired resampling).
    """
    columns = np.stack([*before, *after], axis=1)

    def figures(sums: Array) -> tuple[Array, Array]:
        return finish(_ratio(sums[:, 0], sums[:, 1])), finish(_ratio(sums[:, 2], sums[:, 3]))

    def change(sums: Array) -> Array:
        first, second = figures(sums)
        return second - first

    one, two = (float(figure[0]) for figure in figures(columns.sum(axis=0, keepdims=True)))
    bounds = _interval(columns, change, config)
    interval = None if bounds is None else (float(bounds[0]), float(bounds[1]))
    return Difference(two - one, interval, before=one, after=two)


def _interval(
    columns: Array, figure: Callable[[Array], Array], config: EvaluationConfig
) -> tuple[Array, Array] | None:
    """Return the percentile bootstrap interval of a function of sums over documents.

    Args:
        columns: (document, column), what is summed.
        figure: From (resample, column) sums to (resample) figures.
        config: Confidence, resamples and seed.
    """
    num_documents = len(columns)
    if num_documents < 2:
        return None
    generator = np.random.default_rng(derive(config.seed, "bootstrap"))
    uniform = np.full(num_documents, 1 / num_documents)
    figures = []
    left = config.resamples
    while left:
        now = min(left, max(1, _COUNTS_AT_ONCE // num_documents))
        # How often each document is drawn; one product then sums every resample.
        counts = generator.multinomial(num_documents, uniform, size=now).astype(np.float64)
        figures.append(figure(counts @ columns))
        left -= now
    found = np.concatenate(figures)
    tail = (1 - config.confidence) / 2
    low, high = np.quantile(found[~np.isnan(found)], [tail, 1 - tail])
    return low, high


def _ratio(numerators: Array, denominators: Array) -> Array:
    """Return the ratios; where there is nothing to divide by, not a number."""
    ratios = np.full(np.shape(numerators), np.nan)
    np.divide(numerators, denominators, out=ratios, where=np.asarray(denominators) > 0)
    return ratios
