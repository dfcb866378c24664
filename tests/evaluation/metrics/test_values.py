"""Correlations are those of scipy, errors those of scikit-learn."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn

from nbllm.core.errors import DataError
from nbllm.evaluation import METRICS, metric
from nbllm.evaluation.columns import to_arrays, to_columns

GENERATOR = np.random.default_rng(0)
PREDICTED = GENERATOR.normal(size=50)
CASES = {
    "related": (PREDICTED, PREDICTED + GENERATOR.normal(size=50)),
    "with ties": (GENERATOR.integers(5, size=50) * 1.0, GENERATOR.integers(5, size=50) * 1.0),
    "far from zero": (PREDICTED + 1e9, 2 * PREDICTED + GENERATOR.normal(size=50) - 1e9),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name, p_key", [("pearsonr", "p-value"), ("spearmanr", "spearmanr_pvalue")])
def test_correlations_are_those_of_scipy(case, name, p_key):
    predicted, expected = CASES[case]
    found = metric(name).compute(predictions=predicted, references=expected, return_pvalue=True)
    theirs = getattr(stats, name)(predicted, expected)
    assert found == pytest.approx({name: theirs.statistic, p_key: theirs.pvalue}, rel=1e-6, abs=1e-12)
    assert metric(name).compute(predictions=predicted, references=expected) == {name: found[name]}


def test_a_correlation_with_what_does_not_vary_is_none():
    for same in (1.0, 1.6):  # the mean of six times 1.6 is not 1.6
        found = metric("pearsonr").compute(predictions=[same] * 6, references=[1, 2, 3, 5, 4, 2])
        assert math.isnan(found["pearsonr"])
    for name in ("pearsonr", "spearmanr"):
        assert metric(name, undefined=0.0).compute(predictions=[1, 1], references=[1, 2]) == {name: 0}
    assert metric("pearsonr").compute(predictions=[1, 2], references=[1, 2])["pearsonr"] == pytest.approx(1)
    with pytest.raises(DataError, match="at least two examples"):
        metric("spearmanr").compute(predictions=[1.0], references=[1.0])


@pytest.mark.parametrize("sample_weight", [None, GENERATOR.random(50).tolist()])
def test_errors_are_those_of_scikit_learn(sample_weight):
    predicted, expected = CASES["related"]
    inputs = {"predictions": predicted, "references": expected, "sample_weight": sample_weight}
    weights = {"sample_weight": sample_weight}
    for name, settings, theirs in (
        ("mse", {}, sklearn.mean_squared_error),
        ("mse", {"squared": False}, sklearn.root_mean_squared_error),
        ("mae", {}, sklearn.mean_absolute_error),
    ):
        value = metric(name).compute(**inputs, **settings)[name]
        assert value == pytest.approx(theirs(expected, predicted, **weights), rel=1e-12)


def test_a_resample_of_a_root_is_the_root_of_a_resample():
    figure = METRICS["mse"](squared=False)
    columns = to_arrays(to_columns(figure.rows([1.0, 2.0, 4.0], [1.0, 1.0, 1.0])))
    found = figure.resample(columns, np.array([[0, 2, 1.0]]))
    assert found[0] == pytest.approx(math.sqrt((1 + 1 + 9) / 3))


@pytest.mark.parametrize("value", [math.nan, math.inf, "1", True])
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(DataError, match=r"predictions\[1\] is .*not a (finite )?number"):
        metric("mse").compute(predictions=[1.0, value], references=[1.0, 1.0])
