"""Intervals of proportions and of their ratios, of independent answers and of answers that come in clusters."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]


def wilson(successes: float, trials: float, confidence: float) -> Interval:
    """Return Wilson's score interval of a proportion.

    Its average coverage is close to `confidence` even for few trials and proportions near 0 or 1, where the textbook
    interval fails. No interval of a count can cover a given proportion exactly: of 30 trials at .02, every interval
    that treats equal counts alike covers 87.9 % or 97.8 % of the time; Wilson's does 97.8 %.

    Args:
        successes: From 0 to `trials`.
        trials: Greater than 0; not whole for an effective sample size.
        confidence: Between 0 and 1.

    Source: Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference"; Brown, Cai and DasGupta
    2001, "Interval Estimation for a Binomial Proportion".
    """
    return _score_interval(successes / trials, trials, NormalDist().inv_cdf((1 + confidence) / 2))


def clustered_wilson(
    outcomes: NDArray[np.float64], clusters: NDArray[np.intp], confidence: float
) -> Interval | None:
    """Return Wilson's interval of a proportion whose rows come in clusters, as questions on one text.

    The number of trials is that of independent rows which would have the same standard error, the cluster-robust one
    with the factor G / (G - 1) for G clusters, and never more than there are rows; the quantile is Student's for G - 1
    degrees of freedom. Where all rows agree, which says nothing about how alike rows of a cluster are, each cluster
    counts as one trial.

    Args:
        outcomes: (row), 0 or 1.
        clusters: (row), the number of each row's cluster, from 0.
        confidence: Between 0 and 1.

    Returns:
        The interval; `None` for fewer than two clusters.

    Source: Korn and Graubard 1998, "Confidence Intervals for Proportions with Small Expected Number of Positive
    Counts Estimated from Survey Data"; Miller 2024, "Adding Error Bars to Evals", arXiv:2411.00640, equation 4.
    """
    num_clusters = int(clusters.max(initial=-1)) + 1
    if num_clusters < 2:
        return None
    share = float(outcomes.mean())
    error = clustered_error(outcomes, clusters)
    trials = min(share * (1 - share) / error**2, len(outcomes)) if error > 0 else float(num_clusters)
    return _score_interval(share, trials, student_quantile((1 + confidence) / 2, num_clusters - 1))


def clustered_error(values: NDArray[np.float64], clusters: NDArray[np.intp]) -> float:
    """Return the cluster-robust standard error of a mean, with the factor G / (G - 1) for G clusters.

    Args:
        values: (row).
        clusters: (row), numbered from 0, at least two.

    Source: Miller 2024, arXiv:2411.00640, equation 4, there without the factor.
    """
    sums = np.bincount(clusters, weights=values - values.mean())
    return math.sqrt(len(sums) / (len(sums) - 1) * float((sums**2).sum())) / len(values)


def _score_interval(share: float, trials: float, quantile: float) -> Interval:
    squared = quantile**2 / trials
    centre = (share + squared / 2) / (1 + squared)
    half = quantile / (1 + squared) * math.sqrt(share * (1 - share) / trials + squared / (4 * trials))
    low = 0.0 if share == 0 else max(0.0, centre - half)  # exactly, whatever rounding says
    return low, 1.0 if share == 1 else min(1.0, centre + half)


def student_quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t distribution.

    Args:
        probability: From .5 to below 1.
        degrees: Of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while student_cdf(high, degrees) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, degrees) < probability else (low, middle)
    return high


def student_cdf(value: float, degrees: int) -> float:
    """Return the probability that a variable with Student's t distribution is at most `value`, which is not negative.

    Source: Abramowitz and Stegun 1964, equations 26.7.3 and 26.7.4.
    """
    angle = math.atan(value / math.sqrt(degrees))
    cosine = math.cos(angle)
    term = cosine if degrees % 2 else 1.0
    total = 0.0
    for order in range(1 + degrees % 2, degrees, 2):
        total += term
        term *= cosine**2 * order / (order + 1)
    within = math.sin(angle) * total
    if degrees % 2:
        within = 2 / math.pi * (angle + within)
    return (1 + within) / 2


def relative_risk(
    successes: float, trials: float, other_successes: float, other_trials: float, confidence: float
) -> tuple[float, Interval]:
    """Return the ratio of two independent proportions and its interval, that of its logarithm.

    Where one of the two counts is 0, a half is added to both, and to the trials.

    Args:
        successes: Of the first, from 0 to `trials`.
        trials: Greater than 0.
        other_successes: Of the second.
        other_trials: Greater than 0.
        confidence: Between 0 and 1.

    Source: Katz et al. 1978, "Obtaining Confidence Intervals for the Risk Ratio in Cohort Studies"; for zeros Walter
        1975, "The Distribution of Levin's Measure of Attributable Risk".
    """
    if not successes or not other_successes:
        successes, trials, other_successes, other_trials = (
            value + 0.5 for value in (successes, trials, other_successes, other_trials)
        )
    ratio = successes / trials / (other_successes / other_trials)
    variance = 1 / successes - 1 / trials + 1 / other_successes - 1 / other_trials
    return ratio, _of_logarithm(ratio, math.sqrt(max(0.0, variance)), confidence)


def odds_ratio(counts: tuple[float, float, float, float], confidence: float) -> tuple[float, Interval]:
    """Return the odds ratio of a table of counts and its interval, that of its logarithm.

    Where a count is 0, a half is added to each.

    Args:
        counts: With both properties, with the first alone, with the second alone, with none.
        confidence: Between 0 and 1.

    Source: Woolf 1955, "On Estimating the Relation between Blood Group and Disease"; for zeros Haldane 1956, "The
        Estimation and Significance of the Logarithm of a Ratio of Frequencies".
    """
    both, first, second, none = (count + 0.5 for count in counts) if 0 in counts else counts
    ratio = both * none / (first * second)
    error = math.sqrt(1 / both + 1 / first + 1 / second + 1 / none)
    return ratio, _of_logarithm(ratio, error, confidence)


def _of_logarithm(ratio: float, error: float, confidence: float) -> Interval:
    half = NormalDist().inv_cdf((1 + confidence) / 2) * error
    return ratio * math.exp(-half), ratio * math.exp(half)
