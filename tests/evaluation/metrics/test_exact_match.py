"""Exact match: the examples of the documentation of evaluate's module, and what is left of an erased text."""

import numpy as np
import pytest

from nbllm.core.errors import UserError
from nbllm.evaluation import METRICS, EvaluationConfig, estimate, metric

REFERENCES = ["the cat", "theater", "YELLING", "agent007"]
PREDICTIONS = ["cat?", "theater", "yelling", "agent"]


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, 0.25),
        ({"regexes_to_ignore": ["the ", "yell"], "ignore_case": True, "ignore_punctuation": True}, 0.5),
        (
            {"regexes_to_ignore": ["the ", "yell", "YELL"], "ignore_case": True, "ignore_punctuation": True},
            0.75,
        ),
        (
            {
                "regexes_to_ignore": ["the ", "yell", "YELL"],
                "ignore_case": True,
                "ignore_punctuation": True,
                "ignore_numbers": True,
            },
            1.0,
        ),
    ],
)
def test_the_examples_of_evaluate_s_documentation(settings, expected):
    found = metric("exact_match").compute(predictions=PREDICTIONS, references=REFERENCES, **settings)
    assert found == {"exact_match": expected}


def test_erased_texts_match_only_if_they_were_the_same():
    judged = metric("exact_match", ignore_numbers=True)
    found = judged.compute(predictions=["7", "5", ""], references=["5", "5", ""])
    assert found["exact_match"] == pytest.approx(2 / 3)


def test_any_of_several_references_will_do():
    found = metric("exact_match").compute(predictions=["b", "c"], references=[["a", "b"], ["a", "b"]])
    assert found["exact_match"] == 0.5


def test_an_expression_does_not_break_the_signature():
    signature = metric("exact_match", regexes_to_ignore=["a|b", "\n"]).signature
    assert "|regexes_to_ignore:a/b, |ignore_case:no|" in signature and "\n" not in signature


def test_expressions_are_checked():
    with pytest.raises(UserError, match=r"'\(' is no regular expression"):
        metric("exact_match", regexes_to_ignore=["("])
    with pytest.raises(UserError, match="Give a list"):
        metric("exact_match", regexes_to_ignore="the")


def test_a_share_has_wilson_s_interval_on_its_own_scale():
    columns = {"exact_match": np.array([1.0, 0, 1, 1]), "f1": np.array([1.0, 0.5, 1, 1])}
    share = estimate(METRICS["exact_match"](), columns, EvaluationConfig())
    percentage = estimate(METRICS["squad_exact_match"](), columns, EvaluationConfig())
    assert share.method == percentage.method == "wilson"
    assert percentage.interval == pytest.approx([100 * bound for bound in share.interval])
    assert estimate(METRICS["token_f1"](), columns, EvaluationConfig()).method != "wilson"
