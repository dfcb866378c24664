"""Intervals of proportions: how often they hold the truth, exactly and in simulated evaluations."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from nbllm.core.proportions import (
    clustered_error,
    clustered_wilson,
    odds_ratio,
    relative_risk,
    student_cdf,
    student_quantile,
    wilson,
)
from nbllm.evaluation import METRICS, EvaluationConfig, estimate

# Source: Miller 2024, "Adding Error Bars to Evals", arXiv:2411.00640, section 2.2.
CLUSTERS, ANSWERS = np.repeat(np.arange(4), 4), np.array([1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1.0])


def probabilities(trials, truth):
    """The binomial distribution: (successes)."""
    k = np.arange(trials + 1)
    logs = [math.lgamma(trials + 1) - math.lgamma(i + 1) - math.lgamma(trials - i + 1) for i in k]
    return np.exp(np.array(logs) + k * math.log(truth) + (trials - k) * math.log1p(-truth))


def coverage(trials, truth):
    """The share of infinitely many evaluations whose interval holds the truth."""
    bounds = [wilson(successes, trials, 0.95) for successes in range(trials + 1)]
    held = [low <= truth <= high for low, high in bounds]
    return float(probabilities(trials, truth)[held].sum())


POSSIBLE = [(30, 0.5), (200, 0.02), (200, 0.5), (2000, 0.02), (2000, 0.5)]


@pytest.mark.parametrize(("trials", "truth"), POSSIBLE)
def test_wilson_s_interval_covers_as_often_as_it_says(trials, truth):
    assert 0.93 <= coverage(trials, truth) <= 0.97


def test_of_30_trials_at_2_percent_no_interval_covers_between_93_and_97_percent():
    """Equal counts have equal intervals, so coverage is the probability of a set of neighbouring counts."""
    chances = probabilities(30, 0.02)
    possible = {float(chances[i:j].sum()) for i in range(31) for j in range(i + 1, 32)}
    assert not any(0.93 <= each <= 0.97 for each in possible)
    assert coverage(30, 0.02) == pytest.approx(min(each for each in possible if each >= 0.95))


@pytest.mark.parametrize("truth", [0.02, 0.5])
@pytest.mark.parametrize("trials", [30, 200, 2000])
def test_a_thousand_evaluations_cover_as_often_as_their_intervals_promise(trials, truth):
    generator, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        correct = (generator.random(trials) < truth).astype(float)
        found = estimate(METRICS["accuracy"](), {"correct": correct}, EvaluationConfig())
        assert found.method == "wilson"
        covered += found.interval[0] <= truth <= found.interval[1]
    error = math.sqrt(0.05 * 0.95 / 1000)
    assert covered / 1000 == pytest.approx(coverage(trials, truth), abs=3 * error)
    assert 0.93 <= covered / 1000 <= (0.97 if trials > 30 or truth == 0.5 else 1)


def clustered_answers(generator, num_rows, truth, alike=0.1):
    """Answers to questions on texts, five each, some texts harder: intra-cluster correlation `alike`."""
    scale = (1 - alike) / alike
    hard = generator.beta(truth * scale, (1 - truth) * scale, num_rows // 5)
    clusters = np.repeat(np.arange(num_rows // 5), 5)
    return (generator.random(num_rows) < hard[clusters]).astype(float), clusters


@pytest.mark.parametrize(
    ("num_rows", "truth", "most"),
    # Six texts are too few to say how alike their questions are, and 2 % of 30 too few to be covered exactly.
    [
        (30, 0.02, 1),
        (30, 0.5, 1),
        (200, 0.02, 0.98),
        (200, 0.5, 0.97),
        (2000, 0.02, 0.97),
        (2000, 0.5, 0.97),
    ],
)
def test_clustered_intervals_cover_too(num_rows, truth, most):
    generator, covered, naive = np.random.default_rng(0), 0, 0
    for _ in range(1000):
        correct, clusters = clustered_answers(generator, num_rows, truth)
        low, high = estimate(
            METRICS["accuracy"](), {"correct": correct}, EvaluationConfig(), clusters
        ).interval
        covered += low <= truth <= high
        low, high = wilson(correct.sum(), num_rows, 0.95)
        naive += low <= truth <= high
    assert 0.93 <= covered / 1000 <= most and naive < covered


def test_wilson_s_interval_is_what_solves_its_equation():
    low, high = wilson(7, 20, 0.9)
    for bound in (low, high):
        z = (7 / 20 - bound) / math.sqrt(bound * (1 - bound) / 20)
        assert abs(z) == pytest.approx(NormalDist().inv_cdf(0.95))
    assert wilson(0, 20, 0.95)[0] == 0 and wilson(20, 20, 0.95)[1] == 1


def test_clustered_errors_are_the_published_ones():
    independent = math.sqrt(ANSWERS.var(ddof=1) / 16)
    found = clustered_error(ANSWERS, CLUSTERS)
    assert ANSWERS.mean() == 0.5 and independent == pytest.approx(0.1291, abs=5e-5)
    assert found == pytest.approx(0.2282, abs=5e-5)
    assert found / math.sqrt(4 / 3) == pytest.approx(0.1976, abs=5e-5)


def test_rows_of_one_cluster_say_less_than_independent_ones():
    low, high = clustered_wilson(ANSWERS, CLUSTERS, 0.95)
    alone = wilson(8, 16, 0.95)
    assert low < alone[0] < alone[1] < high
    assert clustered_wilson(ANSWERS, np.zeros(16, int), 0.95) is None


def test_answers_that_all_agree_count_once_a_cluster():
    low, high = clustered_wilson(np.ones(16), CLUSTERS, 0.95)
    quantile = student_quantile(0.975, 3)
    assert high == 1 and low == pytest.approx(4 / (4 + quantile**2))


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.706), (2, 4.303), (3, 3.182), (10, 2.228), (56, 2.003)]
)
def test_student_s_quantiles_are_those_of_the_tables(degrees, expected):
    assert student_quantile(0.975, degrees) == pytest.approx(expected, abs=5e-4)
    assert student_cdf(0, degrees) == 0.5


def test_a_macro_average_of_single_rows_has_no_interval():
    columns = {"correct": np.array([1.0, 0, 1, 0]), "subject": np.array(["a", "b", "c", "c"])}
    figure = estimate(METRICS["macro_accuracy"](), columns, EvaluationConfig())
    assert figure.value == pytest.approx(0.5) and figure.interval is None


def test_a_macro_average_has_the_error_of_rows_within_fixed_groups():
    generator = np.random.default_rng(0)
    sizes, truth = np.array([40, 100, 400]), np.array([0.9, 0.5, 0.2])
    subject = np.repeat([*"abc"], sizes).astype(object)
    correct = (generator.random(540) < np.repeat(truth, sizes)).astype(float)
    shares = np.array([correct[subject == each].mean() for each in "abc"])
    found = estimate(
        METRICS["macro_accuracy"](),
        {"correct": correct, "subject": subject},
        EvaluationConfig(resamples=20_000),
        clusters=subject,
    )
    assert found.value == pytest.approx(shares.mean()) and found.method == "bootstrap"
    error = math.sqrt((shares * (1 - shares) / sizes).sum()) / 3
    assert (found.interval[1] - found.interval[0]) == pytest.approx(2 * 1.96 * error, rel=0.04)
    # The groups themselves differ far more: they are not drawn.
    assert error < 0.2 * shares.std(ddof=1) / math.sqrt(3)


def test_a_tie_among_choices_leaves_an_accuracy_a_proportion():
    correct = np.array([1, 0, 0.5, 1, 0, 0.25] * 10)
    found = estimate(METRICS["accuracy"](), {"correct": correct}, EvaluationConfig())
    assert found.method == "wilson" and found.interval == wilson(correct.sum(), 60, 0.95)


@pytest.mark.parametrize(
    ("a", "n", "b", "m"), [(10, 40, 30, 200), (1, 5, 9, 10), (3, 300, 3, 300), (5, 5, 2, 9)]
)
def test_ratios_are_those_of_scipy(a, n, b, m):
    from scipy.stats import contingency

    for confidence in (0.9, 0.95):
        theirs = contingency.relative_risk(a, n, b, m)
        ratio, interval = relative_risk(a, n, b, m, confidence)
        expected = theirs.confidence_interval(confidence)
        assert ratio == pytest.approx(theirs.relative_risk) and interval == pytest.approx(
            (expected.low, expected.high)
        )
        if a < n:
            sample = contingency.odds_ratio([[a, n - a], [b, m - b]], kind="sample")
            ratio, interval = odds_ratio((a, n - a, b, m - b), confidence)
            expected = sample.confidence_interval(confidence)
            assert ratio == pytest.approx(sample.statistic)
            assert interval == pytest.approx((expected.low, expected.high))


def test_ratios_of_nothing_are_finite():
    for counts in [(0, 10, 5, 10), (5, 10, 0, 10), (0, 10, 0, 10), (10, 10, 0, 10)]:
        ratio, (low, high) = relative_risk(*counts, 0.95)
        assert 0 < low < ratio < high < math.inf
    assert relative_risk(0, 10, 0, 10, 0.95)[0] == 1
    assert odds_ratio((0, 5, 5, 0), 0.95)[0] == pytest.approx(0.25 / 30.25)
