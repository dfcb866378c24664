import random

import numpy as np
import pytest

from nbllm.evaluation import EvaluationConfig, ratio_of_sums


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
