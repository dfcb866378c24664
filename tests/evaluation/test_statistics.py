import random

import numpy as np
import pytest

from nbllm.evaluation import EvaluationConfig, difference_of_ratios, ratio_of_sums


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
        ratio_of_sums(*data, EvaluationConfig(), finish=np.exp),
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
    found = difference_of_ratios(before, after, EvaluationConfig(), finish=np.exp)
    assert (found.before, found.after) == (pytest.approx(np.exp(31 / 11)), pytest.approx(np.exp(2)))
    assert found.value == pytest.approx(np.exp(2) - np.exp(31 / 11))


@pytest.mark.parametrize("finish", [lambda ratio: ratio, np.exp], ids=["as it is", "exp"])
def test_the_interval_of_a_difference_draws_the_same_documents_for_both(finish):
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
        (one, sizes), (two, sizes), EvaluationConfig(resamples=20_000), finish=finish
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
