from __future__ import annotations

import itertools

import numpy as np
import pytest

from nbllm.runs.timeline import Points
from nbllm.widgets.points import MOST, columns, packed, thin, thinned


@pytest.mark.parametrize("count", [0, 1, 8, 9, 10, 4096, 100_003])
def test_thinned_points_are_some_of_all_in_order_with_the_ends(count):
    values = np.random.default_rng(0).normal(size=count)
    places = thin(values, 8)
    assert len(places) <= max(8, 0) or count <= 8
    assert len(places) == min(count, len(places))
    assert np.all(np.diff(places) > 0)
    if count:
        assert (places[0], places[-1]) == (0, count - 1)


def test_a_spike_of_one_point_survives_either_way():
    values = np.linspace(5, 2, 100_000)
    values[40_001], values[70_002] = 90.0, -3.0
    places = thin(values, 400)
    assert len(places) <= 400
    assert {40_001, 70_002} <= set(places.tolist())


def test_every_span_keeps_its_range():
    values = np.random.default_rng(1).normal(size=10_000)
    kept = thin(values, 400)
    edges = np.linspace(0, 10_000, 101).astype(int)
    for first, last in itertools.pairwise(edges):
        inside = values[kept[(kept >= first) & (kept < last)]]
        span = values[first:last]
        assert (inside.min(), inside.max()) == (span.min(), span.max())
        assert (inside[0], inside[-1]) == (span[0], span[-1])


def test_nan_hides_no_extreme():
    values = np.full(1000, np.nan)
    values[500], values[501] = 1.0, 2.0
    assert {500, 501} <= set(thin(values, 40).tolist())
    assert len(thin(np.full(1000, np.nan), 40)) <= 40


def points(count):
    found = Points()
    for i in range(1, count + 1):
        found.add([{"step": i, "loss": 1 / i, "tokens": i * 10_000_000_001, "time": 1.7e9 + i}])
    return found


def test_columns_travel_as_bytes_that_say_what_they_are():
    described, buffers = packed(columns(points(5), 1, 4))
    table = {d["name"]: np.frombuffer(b, d["dtype"]) for d, b in zip(described, buffers, strict=True)}
    assert table["step"].tolist() == [2, 3, 4]
    assert table["tokens"].tolist() == [i * 10_000_000_001 for i in (2, 3, 4)]  # no rounding
    assert table["loss"].dtype == np.float32
    np.testing.assert_allclose(table["loss"], [1 / 2, 1 / 3, 1 / 4], rtol=1e-6)
    assert all(d["length"] == 3 for d in described)


def test_all_columns_are_thinned_at_the_same_places():
    table = thinned(columns(points(50_000)))
    assert len(table["step"]) <= MOST
    np.testing.assert_array_equal(table["tokens"], table["step"] * 10_000_000_001)
    np.testing.assert_allclose(table["loss"], 1 / table["step"])


def test_a_number_too_large_for_float32_is_infinite_and_no_warning():
    _, buffers = packed({"step": np.array([1.0]), "grad_norm": np.array([1e200])})
    assert np.isinf(np.frombuffer(buffers[1], "float32")).all()
