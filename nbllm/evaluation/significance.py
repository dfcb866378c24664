"""Whether two models differ: exact and resampling tests of paired answers, corrected for many of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nbllm.evaluation.columns import Array, Columns
from nbllm.evaluation.statistics import numbered, p_value

if TYPE_CHECKING:
    from nbllm.evaluation.metrics.base import Metric

POWER = 0.8  # with which `examples_needed` would find a difference
_CHOICES_AT_ONCE = 1 << 22  # a multiple of 32: NumPy draws 32 truth values from one number


def mcnemar(first: int, second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    Examples on which both models are right or both are wrong say nothing about which is better; of the others each
    model has half where they are equally good. Where ties give credit in part, it is the sign test of the credits.

    Args:
        first: Examples that the first model alone has right.
        second: Examples that the second alone has right.

    Source: McNemar 1947, "Note on the Sampling Error of the Difference between Correlated Proportions"; exact as in
    Dietterich 1998, "Approximate Statistical Tests for Comparing Supervised Classification Learning Algorithms".
    """
    count, fewer = first + second, min(first, second)
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) - count * math.log(2)
        for k in range(fewer + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def approximate_randomization(
    metric: Metric,
    first: Columns,
    second: Columns,
    trials: int,
    generator: np.random.Generator,
    clusters: NDArray[Any] | None = None,
) -> float:
    """Return the two-sided p-value of the test that exchanges the two models' answers at random.

    Where the models are equally good, it makes no difference whose answer to an example is whose.

    Args:
        metric: Computes the figure.
        first: Columns of one model, each (row).
        second: Of the other, of the same examples.
        trials: How often the answers are exchanged.
        generator: Draws which; the same as sacrebleu's gives the same p-value.
        clusters: (row), equal for rows that are exchanged together; `None`: each alone.

    Source: Noreen 1989, Computer-Intensive Methods for Testing Hypotheses; Riezler and Maxwell 2005; computed as
    `sacrebleu.significance` does.
    """
    units = None if clusters is None else numbered(clusters)
    num_rows = len(first[metric.columns[0]])
    num_units = num_rows if units is None else int(units.max(initial=-1)) + 1
    observed = abs(metric.compute(first) - metric.compute(second))
    step = max(32, _CHOICES_AT_ONCE // max(num_rows, 1) // 32 * 32)
    found = []
    for start in range(0, trials, step):
        size = (min(step, trials - start), num_units)
        chosen = generator.integers(2, size=size, dtype=bool)
        rows = chosen if units is None else chosen[:, units]
        found.append(metric.exchanged(first, second, rows) - metric.exchanged(first, second, ~rows))
    return p_value(np.abs(np.concatenate(found)), observed)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, so that all are right at once with the probability of one alone.

    Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure".
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = highest
    return corrected


def effect_size(difference: float, error: float, num_rows: int) -> float:
    """Return Cohen's d for paired values: the difference in standard deviations of an example's difference.

    Args:
        difference: Of the figures.
        error: Its standard error, clustered or not.
        num_rows: Examples.

    Source: Cohen 1988, Statistical Power Analysis for the Behavioral Sciences, section 2.3.5 (there d_z).
    """
    return difference / (error * math.sqrt(num_rows)) if error > 0 else math.nan


def examples_needed(difference: float, error: float, num_rows: int, confidence: float) -> float:
    """Return how many examples would show a difference of that size with a power of `POWER`.

    Args:
        difference: Of the figures.
        error: Its standard error on `num_rows` examples.
        num_rows: Examples.
        confidence: Of the two-sided test.

    Returns:
        A whole number; infinite where there is no difference, not a number where the error is not known.

    Source: Cohen 1988, section 2.4; Miller 2024, arXiv:2411.00640, section 5.
    """
    if not error > 0:
        return math.nan
    if difference == 0:
        return math.inf
    normal = NormalDist()
    deviations = normal.inv_cdf((1 + confidence) / 2) + normal.inv_cdf(POWER)
    return float(math.ceil(num_rows * (deviations * error / difference) ** 2))


def flips(first: Array, second: Array) -> tuple[int, int, list[int]]:
    """Return how many examples each model alone has right (or more of), and which these are, in their order.

    Args:
        first: (row), 0 or 1, or between them for a tie among choices.
        second: The same of the other model.
    """
    differ = np.flatnonzero(first != second)
    return int((first > second).sum()), int((second > first).sum()), [int(i) for i in differ]
