import math
import random

import numpy as np
import pytest

from nbllm.evaluation import EvaluationConfig, Metric, RatioOfSums, difference, estimate
from nbllm.evaluation.statistics import clusters_of


class Ratio(RatioOfSums):
    """The plain ratio of two columns."""

    name, label, better, columns = "ratio", "ratio", "", ("above", "below")
    terms = staticmethod(lambda columns: (columns["above"], columns["below"]))


class Exponential(Ratio):
    finish = staticmethod(np.exp)


class Median(Metric):
    """No ratio of sums: the general way."""

    name, label, better, columns = "median", "median", "", ("value",)
    compute = staticmethod(lambda columns: float(np.median(columns["value"])))


def columns_of(pair):
    return dict(zip(("above", "below"), pair, strict=True))


def ratio_of_sums(above, below, config, metric=Ratio, clusters=None):
    return estimate(metric(), columns_of((above, below)), config, clusters)


def difference_of_ratios(before, after, config, metric=Ratio):
    return difference(metric(), columns_of(before), columns_of(after), config)


def sample(count, seed):
    generator = np.random.default_rng(seed)
    sizes = generator.lognormal(5, 1, count)
    return 2.0 * sizes + generator.normal(0, 0.3, count) * sizes, sizes


def test_the_value_is_the_ratio_of_the_sums():
    found = ratio_of_sums(np.array([1.0, 30.0]), np.array([1.0, 10.0]), EvaluationConfig())
    assert found.value == pytest.approx(31 / 11)  # not the mean of 1 and 3


def test_the_interval_is_that_of_resampling_documents_one_by_one():
    numerators, sizes = sample(40, seed=0)
    chooser = random.Random(1)
    ratios = []
    for _ in range(4000):
        drawn = chooser.choices(range(40), k=40)
        ratios.append(sum(numerators[i] for i in drawn) / sum(sizes[i] for i in drawn))
    low, high = np.quantile(ratios, [0.025, 0.975])
    ours = ratio_of_sums(numerators, sizes, EvaluationConfig(resamples=20_000)).interval
    assert ours == pytest.approx((low, high), abs=0.06 * (high - low))


def test_the_interval_agrees_with_the_formula_for_large_samples():
    """Source: Cochran 1977, Sampling Techniques, equation 6.13."""
    numerators, sizes = sample(4000, seed=0)
    ratio = numerators.sum() / sizes.sum()
    error = np.sqrt(4000 / 3999 * ((numerators - ratio * sizes) ** 2).sum()) / sizes.sum()
    low, high = ratio_of_sums(numerators, sizes, EvaluationConfig(resamples=4000)).interval
    assert (high - low) == pytest.approx(2 * 1.96 * error, rel=0.06)
    assert (low + high) / 2 == pytest.approx(ratio, abs=0.1 * error)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(200):
        low, high = ratio_of_sums(*sample(80, seed), EvaluationConfig(resamples=400)).interval
        covered += low <= 2.0 <= high
    assert 0.86 <= covered / 200 <= 0.99


def test_more_confidence_is_wider_and_the_seed_fixes_it():
    data = sample(30, seed=3)
    narrow, wide = (ratio_of_sums(*data, EvaluationConfig(confidence=c)).interval for c in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    assert ratio_of_sums(*data, EvaluationConfig()) == ratio_of_sums(*data, EvaluationConfig())
    assert ratio_of_sums(*data, EvaluationConfig(seed=1)) != ratio_of_sums(*data, EvaluationConfig())


def test_finish_is_applied_to_value_and_bounds():
    data = sample(30, seed=3)
    plain, exp = (
        ratio_of_sums(*data, EvaluationConfig()),
        ratio_of_sums(*data, EvaluationConfig(), Exponential),
    )
    assert exp.value == pytest.approx(np.exp(plain.value))
    assert exp.interval == pytest.approx(tuple(np.exp(plain.interval)))


def test_one_document_has_no_interval():
    assert ratio_of_sums(np.array([3.0]), np.array([2.0]), EvaluationConfig()).interval is None


def test_many_documents_are_resampled_in_parts():
    low, high = ratio_of_sums(*sample(30_000, seed=0), EvaluationConfig(resamples=300)).interval
    assert 1.98 < low < 2.0 < high < 2.02


def paired(count, seed, shift=-0.05):
    """Two measurements of the same documents; documents differ far more than the measurements do."""
    numerators, sizes = sample(count, seed)
    generator = np.random.default_rng(seed + 1000)
    return (numerators, sizes), (numerators + sizes * (shift + generator.normal(0, 0.02, count)), sizes)


def test_a_difference_is_that_of_the_two_figures():
    before, after = (
        (np.array([1.0, 30.0]), np.array([1.0, 10.0])),
        (np.array([2.0, 20.0]), np.array([2.0, 9.0])),
    )
    found = difference_of_ratios(before, after, EvaluationConfig(), Exponential)
    assert (found.before, found.after) == (pytest.approx(np.exp(31 / 11)), pytest.approx(np.exp(2)))
    assert found.value == pytest.approx(np.exp(2) - np.exp(31 / 11))


@pytest.mark.parametrize("metric", [Ratio, Exponential])
def test_the_interval_of_a_difference_draws_the_same_documents_for_both(metric):
    finish = metric().finish
    (one, sizes), (two, _) = paired(40, seed=0)
    chooser = random.Random(1)
    changes = []
    for _ in range(4000):
        drawn = chooser.choices(range(40), k=40)
        total = sum(sizes[i] for i in drawn)
        changes.append(
            finish(sum(two[i] for i in drawn) / total) - finish(sum(one[i] for i in drawn) / total)
        )
    low, high = np.quantile(changes, [0.025, 0.975])
    ours = difference_of_ratios(
        (one, sizes), (two, sizes), EvaluationConfig(resamples=20_000), metric
    ).interval
    assert ours == pytest.approx((low, high), abs=0.06 * (high - low))


def test_the_interval_of_a_difference_agrees_with_the_formula_for_large_samples():
    """Source: Cochran 1977, Sampling Techniques, equation 6.13, of the ratio of the documents' differences."""
    (one, sizes), (two, _) = paired(4000, seed=0)
    change = (two - one).sum() / sizes.sum()
    error = np.sqrt(4000 / 3999 * ((two - one - change * sizes) ** 2).sum()) / sizes.sum()
    found = difference_of_ratios((one, sizes), (two, sizes), EvaluationConfig(resamples=4000))
    low, high = found.interval
    assert found.value == pytest.approx(change)
    assert (high - low) == pytest.approx(2 * 1.96 * error, rel=0.06)
    # What two separate intervals say is far less.
    apart = ratio_of_sums(one, sizes, EvaluationConfig()).interval
    assert high - low < 0.2 * (apart[1] - apart[0])


def test_a_measurement_compared_with_itself_has_not_changed():
    before, _ = paired(20, seed=0)
    found = difference_of_ratios(before, before, EvaluationConfig())
    assert found.value == 0 and found.interval == (0, 0)


def test_the_difference_of_one_document_has_no_interval():
    one, two = (np.array([3.0]), np.array([2.0])), (np.array([5.0]), np.array([2.0]))
    found = difference_of_ratios(one, two, EvaluationConfig())
    assert found.value == 1 and found.interval is None


def test_any_metric_is_resampled_row_by_row():
    """Source: Efron 1979: the bootstrap of a median of 2m - 1 values has a binomial distribution."""
    values = np.random.default_rng(0).permutation(np.arange(15.0))
    found = estimate(Median(), {"value": values}, EvaluationConfig(resamples=20_000, confidence=0.9))
    assert found.value == 7
    # P(median > k) is P(fewer than 8 of 15 draws are at most k), each with probability (k + 1) / 15.
    below = [1 - sum(binomial(15, i, (k + 1) / 15) for i in range(8)) for k in range(15)]
    expected = tuple(next(k for k in range(15) if below[k] >= tail) for tail in (0.05, 0.95))
    assert found.interval == expected


def binomial(count, hits, probability):
    return math.comb(count, hits) * probability**hits * (1 - probability) ** (count - hits)


def test_the_fast_way_and_the_general_way_agree():
    above, below = sample(30, seed=3)
    counts = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=50).astype(float)
    columns = columns_of((above, below))
    np.testing.assert_allclose(
        Ratio().resample(columns, counts), Metric.resample(Ratio(), columns, counts), rtol=1e-12
    )


# Source: Miller 2024, "Adding Error Bars to Evals", arXiv:2411.00640, section 2.2.
CLUSTERS, ANSWERS = np.repeat([*"abcd"], 4), np.array([1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1.0])


@pytest.mark.parametrize("metric", [Ratio, Median])
def test_whole_clusters_are_drawn(metric):
    columns = {"above": 2 * ANSWERS, "below": 2 * np.ones(16), "value": ANSWERS}
    chooser, means = random.Random(1), []
    for _ in range(4000):
        drawn = np.concatenate([ANSWERS[CLUSTERS == chooser.choice("abcd")] for _ in range(4)])
        means.append(drawn.mean() if metric is Ratio else np.median(drawn))
    expected = np.quantile(means, [0.1, 0.9])
    config = EvaluationConfig(resamples=4000, confidence=0.8)
    found = estimate(metric(), columns, config, CLUSTERS)
    assert found.value == 0.5 and found.interval == pytest.approx(tuple(expected), abs=0.05)


def test_one_cluster_has_no_interval():
    assert ratio_of_sums(ANSWERS, np.ones(16), EvaluationConfig(), clusters=np.zeros(16)).interval is None


def test_rows_that_are_all_of_one_cluster_stand_alone():
    columns = {"subject": np.array(["astronomy"] * 3, object), "text": np.array(["a", "b", "b"], object)}
    assert clusters_of(columns, "subject") is None
    assert clusters_of(columns, "") is None
    assert clusters_of(columns, "text") is columns["text"]


def test_a_figure_that_is_none_in_some_resamples_is_left_out_of_the_interval():
    above, below = (
        np.array([0.0, 2, 3, 4]),
        np.array([0.0, 1, 1, 1]),
    )  # all draws of the first: nothing to divide by
    low, high = ratio_of_sums(above, below, EvaluationConfig()).interval
    assert 2 <= low < high <= 4
    assert ratio_of_sums(np.zeros(4), np.zeros(4), EvaluationConfig()).interval is None
