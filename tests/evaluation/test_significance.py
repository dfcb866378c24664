"""Tests between two models, against sacrebleu's own and against exact enumeration."""

from __future__ import annotations

import functools
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from nbllm.evaluation import METRICS, EvaluationConfig, FunctionOfSums, difference, significance, statistics
from nbllm.evaluation.significance import (
    approximate_randomization,
    effect_size,
    examples_needed,
    flips,
    holm,
    mcnemar,
)
from nbllm.evaluation.statistics import bootstrap_p_value, paired_resamples

WORDS = "the cat sat on a mat and dog ran to see it all".split()
ROWS = 60


def sentences(seed):
    generator = np.random.default_rng(seed)
    return [" ".join(WORDS[i] for i in generator.integers(len(WORDS), size=12)) for _ in range(ROWS)]


def spoiled(texts, share, seed):
    """The texts with a share of their words replaced."""
    generator, out = np.random.default_rng(seed), []
    for text in texts:
        words = text.split()
        out.append(" ".join("x" if generator.random() < share else word for word in words))
    return out


REFERENCES = sentences(0)
SYSTEMS = {"one": spoiled(REFERENCES, 0.4, 1), "two": spoiled(REFERENCES, 0.36, 2)}


class Sacrebleu(FunctionOfSums):
    """A metric of sacrebleu over its own statistics of a segment."""

    label, better, columns = "score", "higher", ("statistics",)

    @functools.cached_property
    def scorer(self):
        return {"bleu_of_sums": BLEU, "chrf_of_sums": CHRF}[self.name](references=[REFERENCES])

    def statistics(self, columns):
        return np.array(columns["statistics"].tolist(), float)

    def figures(self, sums):
        return np.array([self.scorer._compute_score_from_stats(list(map(int, each))).score for each in sums])


class BleuOfSums(Sacrebleu):
    name = "bleu_of_sums"


class ChrfOfSums(Sacrebleu):
    name = "chrf_of_sums"


def columns_of(metric, system):
    counts = metric.scorer._extract_corpus_statistics(SYSTEMS[system], None)
    out = np.empty(ROWS, object)
    out[:] = [tuple(each) for each in counts]
    return {"statistics": out}


@pytest.fixture(scope="module")
def theirs():
    """sacrebleu's p-values: by test and metric."""
    found = {}
    for kind in ("bs", "ar"):
        metrics = {"BLEU": BLEU(references=[REFERENCES]), "chrF2": CHRF(references=[REFERENCES])}
        test = PairedTest(list(SYSTEMS.items()), metrics, None, test_type=kind, n_samples=300)
        _, scores = test()
        found[kind] = {name: scores[name][1] for name in metrics}
    return found


@pytest.mark.parametrize("kind", [BleuOfSums, ChrfOfSums])
@pytest.mark.parametrize("parts", [1 << 22, 64 * ROWS])
def test_both_resampling_tests_are_sacrebleu_s_on_the_same_seed(kind, parts, theirs, monkeypatch):
    monkeypatch.setattr(statistics, "_COUNTS_AT_ONCE", parts)
    monkeypatch.setattr(significance, "_CHOICES_AT_ONCE", parts)
    metric = kind()
    name = "BLEU" if kind is BleuOfSums else "chrF2"
    one, two = columns_of(metric, "one"), columns_of(metric, "two")
    assert metric.compute(two) == pytest.approx(theirs["bs"][name].score)
    changes = paired_resamples(metric, one, two, 300, np.random.default_rng(12345))
    ours = bootstrap_p_value(changes, metric.compute(two) - metric.compute(one))
    assert ours == pytest.approx(theirs["bs"][name].p_value, abs=1e-12)
    ours = approximate_randomization(metric, one, two, 300, np.random.default_rng(12345))
    assert ours == pytest.approx(theirs["ar"][name].p_value, abs=1e-12)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (3, 9), (10, 10), (2, 30)])
def test_mcnemar_s_p_value_is_exact(first, second):
    count, fewer = first + second, min(first, second)
    tail = sum(Fraction(math.comb(count, k), 2**count) for k in range(fewer + 1))
    assert mcnemar(first, second) == pytest.approx(float(min(1, 2 * tail)), rel=1e-9)


def test_mcnemar_takes_many_examples():
    assert 0.3 < mcnemar(7000, 7100) < 0.5 and mcnemar(1000, 4000) < 1e-300


def test_randomization_of_a_few_answers_is_that_of_all_exchanges():
    one, two = np.array([1, 1, 1, 0, 1, 1, 1, 0.0]), np.array([0, 0, 1, 0, 0, 0, 0, 1.0])
    metric, observed = METRICS["accuracy"](), abs((one - two).mean())
    sums = [abs(((one - two) * signs).mean()) for signs in itertools.product((1, -1), repeat=8)]
    exact = np.mean(np.array(sums) >= observed - 1e-12)
    found = approximate_randomization(
        metric, {"correct": one}, {"correct": two}, 20_000, np.random.default_rng(0)
    )
    assert found == pytest.approx(exact, abs=0.005)


def test_clusters_are_exchanged_and_drawn_whole():
    generator = np.random.default_rng(0)
    clusters = np.repeat(np.arange(8), 25)
    first = np.repeat(generator.integers(2, size=8), 25).astype(float)  # all questions on a text alike
    second = 1 - first
    second[:25] = first[:25]
    config = EvaluationConfig(resamples=500)

    def p_values(clusters):
        columns = {"correct": first}, {"correct": second}
        metric = METRICS["accuracy"]()
        found = difference(metric, *columns, config, clusters)
        p_value = approximate_randomization(metric, *columns, 500, np.random.default_rng(0), clusters)
        return found.error, p_value

    (alone, p_alone), (together, p_together) = p_values(None), p_values(clusters)
    assert together > 3 * alone and p_together > p_alone


def test_equal_models_are_rarely_told_apart_and_unequal_ones_mostly():
    generator, metric = np.random.default_rng(1), METRICS["accuracy"]()
    config, called = EvaluationConfig(resamples=200), {"equal": [0, 0, 0], "unequal": [0, 0, 0]}
    for _ in range(200):
        hard = generator.random(100)
        for name, shift in (("equal", 0.0), ("unequal", 0.25)):
            one = (generator.random(100) < hard).astype(float)
            two = (generator.random(100) < np.clip(hard + shift, 0, 1)).astype(float)
            found = difference(metric, {"correct": one}, {"correct": two}, config)
            exchanged = approximate_randomization(
                metric, {"correct": one}, {"correct": two}, 200, np.random.default_rng(0)
            )
            for i, p_value in enumerate((mcnemar(*flips(one, two)[:2]), found.p_value, exchanged)):
                called[name][i] += p_value < 0.05
    assert all(count <= 22 for count in called["equal"])  # 5 % of 200, and the chance of more
    assert all(count >= 120 for count in called["unequal"])


def test_holm_s_correction_is_the_published_one():
    """Source: Holm 1979: in order .01, .02, .03, .04 become .04, .06, .06, .06."""
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_the_examples_needed_find_the_difference_with_the_power_they_promise():
    generator, rows = np.random.default_rng(0), 400
    values = generator.normal(0.1, 1.0, rows)
    mean, error = values.mean(), values.std(ddof=1) / math.sqrt(rows)
    assert effect_size(mean, error, rows) == pytest.approx(mean / values.std(ddof=1))
    needed = int(examples_needed(mean, error, rows, 0.95))
    draws = generator.normal(mean, values.std(ddof=1), (2000, needed))
    found = np.abs(draws.mean(1)) > 1.96 * draws.std(1, ddof=1) / math.sqrt(needed)
    assert found.mean() == pytest.approx(0.8, abs=0.03)
    assert examples_needed(0, 0.1, 10, 0.95) == math.inf and math.isnan(examples_needed(1, 0, 10, 0.95))


def test_flips_are_the_examples_that_one_model_alone_has_right():
    assert flips(np.array([1, 0, 1, 0.0]), np.array([1, 1, 0, 0.0])) == (1, 1, [1, 2])
