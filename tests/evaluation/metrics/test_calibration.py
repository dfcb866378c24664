"""Calibration error and Brier score are those of torchmetrics and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import binary_calibration_error

from nbllm.core.errors import DataError
from nbllm.evaluation import metric

GENERATOR = np.random.default_rng(0)
PROBABILITIES = np.concatenate([GENERATOR.random(200), [0.0, 0.2, 0.5, 1.0]])
OUTCOMES = (GENERATOR.random(204) < PROBABILITIES**2).astype(int)  # over-confident


@pytest.mark.parametrize("norm", ["l1", "max"])
@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_calibration_error_is_that_of_torchmetrics(norm, num_bins):
    found = metric("expected_calibration_error").compute(
        predictions=PROBABILITIES, references=OUTCOMES, norm=norm, num_bins=num_bins
    )
    inside = PROBABILITIES < 1  # theirs puts what is certain into a bin of its own
    theirs = binary_calibration_error(
        torch.tensor(PROBABILITIES[inside]), torch.tensor(OUTCOMES[inside]), n_bins=num_bins, norm=norm
    )
    ours = metric("expected_calibration_error").compute(
        predictions=PROBABILITIES[inside], references=OUTCOMES[inside], norm=norm, num_bins=num_bins
    )
    assert ours["expected_calibration_error"] == pytest.approx(float(theirs), rel=1e-6)
    assert 0 < found["expected_calibration_error"] < 0.5


def test_the_reliability_diagram_is_made_of_the_examples_of_each_bin():
    found = metric("expected_calibration_error").compute(
        predictions=PROBABILITIES, references=OUTCOMES, num_bins=4
    )
    points = found["reliability_diagram"]
    assert sum(point["count"] for point in points) == len(OUTCOMES)
    for point in points:
        last = point["high"] == 1
        inside = (PROBABILITIES >= point["low"]) & ((PROBABILITIES < point["high"]) | last)
        assert point["count"] == inside.sum()
        assert point["confidence"] == pytest.approx(PROBABILITIES[inside].mean())
        assert point["accuracy"] == pytest.approx(OUTCOMES[inside].mean())
    gaps = sum(point["count"] * abs(point["confidence"] - point["accuracy"]) for point in points)
    assert found["expected_calibration_error"] == pytest.approx(gaps / len(OUTCOMES))


def test_confidence_that_is_right_has_no_error():
    found = metric("expected_calibration_error").compute(
        predictions=[0.5, 0.5, 1.0, 0.0], references=[1, 0, True, False]
    )
    assert found["expected_calibration_error"] == 0


@pytest.mark.parametrize("sample_weight", [None, GENERATOR.random(204).tolist()])
def test_brier_score_is_that_of_scikit_learn(sample_weight):
    weights = {"sample_weight": sample_weight}
    found = metric("brier_score").compute(predictions=PROBABILITIES, references=OUTCOMES, **weights)
    theirs = brier_score_loss(OUTCOMES, PROBABILITIES, **weights)
    assert found == {"brier_score": pytest.approx(theirs, rel=1e-12)}
    names = np.where(OUTCOMES == 1, "yes", "no")
    named = metric("brier_score", pos_label="yes").compute(
        predictions=PROBABILITIES, references=names, **weights
    )
    assert named == pytest.approx(found)


def test_brier_score_of_several_classes_sums_over_them():
    several = GENERATOR.dirichlet([1, 2, 3], size=50)
    right = GENERATOR.integers(3, size=50)
    found = metric("brier_score").compute(predictions=several, references=right)
    theirs = brier_score_loss(right, several, scale_by_half=False)
    assert found["brier_score"] == pytest.approx(theirs, rel=1e-9)


def test_what_is_no_probability_is_refused():
    with pytest.raises(DataError, match=r"predictions\[0\] is 1.5, not a probability"):
        metric("expected_calibration_error").compute(predictions=[1.5], references=[1])
    with pytest.raises(DataError, match=r"references\[0\] is 2, not true or false"):
        metric("expected_calibration_error").compute(predictions=[0.5], references=[2])
    with pytest.raises(DataError, match="whose sum is 0.9, not 1"):
        metric("brier_score").compute(predictions=[[0.5, 0.4]], references=[0])
    with pytest.raises(DataError, match="The reference 2 is no index of the 2 probabilities"):
        metric("brier_score").compute(predictions=[[0.5, 0.5]], references=[2])
