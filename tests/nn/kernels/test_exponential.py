import numpy as np
import pytest

exponential = pytest.importorskip("nbllm.nn.kernels.exponential", exc_type=OSError)


def exp(numbers):
    return np.array([exponential.exp(x) for x in np.float32(numbers)], np.float32)


def test_it_is_within_two_units_in_the_last_place():
    x = np.linspace(-87, 88, 20001, dtype=np.float32)
    expected = np.exp(x.astype(np.float64))
    assert (np.abs(exp(x) - expected) / np.spacing(expected.astype(np.float32))).max() <= 2


def test_its_ends():
    assert exp([0.0, -0.0]).tolist() == [1, 1]
    assert exp([-88, -1e30, -np.inf]).tolist() == [0, 0, 0]
    assert exp([89, 1e30, np.inf]).tolist() == [np.inf] * 3
    assert np.isnan(exp([np.nan])).all()
