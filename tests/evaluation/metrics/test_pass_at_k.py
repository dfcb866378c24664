"""pass@k is the share of all draws of k samples in which one passes."""

import itertools

import pytest

from nbllm.core.errors import DataError, UserError
from nbllm.evaluation import METRICS, metric

PROBLEMS = [[1, 0, 0, 1, 0], [0] * 5, [1] * 5, [True, False, True, True, False, False, False]]


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_it_is_the_mean_over_all_draws(k):
    shares = [
        sum(any(draw) for draw in draws) / len(draws)
        for draws in (list(itertools.combinations(each, k)) for each in PROBLEMS)
    ]
    found = metric("pass_at_k").compute(predictions=PROBLEMS, k=[k])
    assert found == {f"pass@{k}": pytest.approx(sum(shares) / len(shares), rel=1e-12)}


def test_several_k_at_once_and_the_figure_of_a_report():
    found = metric("pass_at_k").compute(predictions=[[1, 1, 0, 0, 0]], k=[1, 3])
    assert found == {"pass@1": pytest.approx(0.4), "pass@3": pytest.approx(0.9)}
    assert METRICS["pass_at_k"](k=3).title("HumanEval") == "pass@3 on HumanEval"
    assert metric("pass_at_k", k=3).signature.startswith("metric:pass_at_k|k:3|")


def test_fewer_samples_than_k_is_not_defined():
    with pytest.raises(DataError, match=r"(?s)Problem 1 has 1 samples: pass@10 is not defined.*at least 10"):
        metric("pass_at_k").compute(predictions=[[1] * 10, [1]], k=10)


def test_what_is_no_outcome_or_number_of_samples_is_refused():
    with pytest.raises(UserError, match="whole number from 1 on, not 0"):
        metric("pass_at_k", k=0)
    with pytest.raises(UserError, match="k is empty"):
        metric("pass_at_k", k=[])
    with pytest.raises(DataError, match=r"predictions\[1\] is an empty list"):
        metric("pass_at_k").compute(predictions=[[1], []])
    with pytest.raises(DataError, match=r"predictions\[0\] is 'passed', not true or false"):
        metric("pass_at_k").compute(predictions=[["passed"]])
