"""How samples repeat themselves and one another."""

import math

import numpy as np
import pytest
from sacrebleu import sentence_bleu

from nbllm.core.errors import DataError, UserError
from nbllm.evaluation import METRICS, metric
from nbllm.evaluation.metrics.words import unicode_words
from tests.evaluation.metrics.corpora import sentences

TEXTS = ["a b a b", "a b c", "", "b"]


def test_distinct_n_counts_different_n_grams_of_all_texts():
    assert metric("distinct_n", n=1).compute(predictions=TEXTS)["distinct_n"] == 3 / 8
    assert metric("distinct_n").compute(predictions=TEXTS)["distinct_n"] == 3 / 5  # ab ba ab | ab bc
    assert math.isnan(metric("distinct_n", n=9).compute(predictions=TEXTS)["distinct_n"])
    assert METRICS["distinct_n"](n=3).title("samples") == "distinct-3 on samples"


def test_repetition_is_the_mean_over_texts_that_have_an_n_gram():
    assert metric("repetition", n=2).compute(predictions=TEXTS)["repetition"] == pytest.approx(
        (1 / 3 + 0) / 2
    )
    assert metric("repetition", n=1).compute(predictions=TEXTS)["repetition"] == pytest.approx(0.5 / 3)
    assert metric("repetition").compute(predictions=["go on " * 50])["repetition"] == pytest.approx(95 / 97)
    assert METRICS["repetition"]().title("") == "rep-4"


def test_self_bleu_is_the_mean_of_sacrebleu_s_sentence_scores():
    texts = [*sentences(12, seed=3), *sentences(3, seed=3)]
    words = [" ".join(unicode_words(text)) for text in texts]
    expected = np.mean(
        [
            sentence_bleu(text, words[:i] + words[i + 1 :], tokenize="none").score
            for i, text in enumerate(words)
        ]
    )
    assert metric("self_bleu").compute(predictions=texts)["self_bleu"] == pytest.approx(expected, rel=1e-9)
    assert metric("self_bleu").compute(predictions=["a b c d e"] * 3)["self_bleu"] == pytest.approx(100)


def test_refusals():
    with pytest.raises(DataError, match="(?s)One text has no others.*at least two"):
        metric("self_bleu").compute(predictions=["a"])
    for name, setting in (("distinct_n", "n"), ("repetition", "n"), ("self_bleu", "max_order")):
        with pytest.raises(UserError, match=f"{setting} must be greater than 0"):
            metric(name, **{setting: 0})
