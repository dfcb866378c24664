"""Fewer points that draw the same line."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nbllm.core.downsample import downsample


@pytest.mark.parametrize("count", [0, 1, 8, 9, 10, 4096, 100_003])
def test_thinned_points_are_some_of_all_in_order_with_the_ends(count):
    values = np.random.default_rng(0).normal(size=count)
    places = downsample(values, 8)
    assert len(places) <= max(8, 0) or count <= 8
    assert len(places) == min(count, len(places))
    assert np.all(np.diff(places) > 0)
    if count:
        assert (places[0], places[-1]) == (0, count - 1)


def test_a_spike_of_one_point_survives_either_way():
    values = np.linspace(5, 2, 100_000)
    values[40_001], values[70_002] = 90.0, -3.0
    places = downsample(values, 400)
    assert len(places) <= 400
    assert {40_001, 70_002} <= set(places.tolist())


def test_every_span_keeps_its_range():
    values = np.random.default_rng(1).normal(size=10_000)
    kept = downsample(values, 400)
    edges = np.linspace(0, 10_000, 101).astype(int)
    for first, last in itertools.pairwise(edges):
        inside = values[kept[(kept >= first) & (kept < last)]]
        span = values[first:last]
        assert (inside.min(), inside.max()) == (span.min(), span.max())
        assert (inside[0], inside[-1]) == (span[0], span[-1])


def test_nan_hides_no_extreme():
    values = np.full(1000, np.nan)
    values[500], values[501] = 1.0, 2.0
    assert {500, 501} <= set(downsample(values, 40).tolist())
    assert len(downsample(np.full(1000, np.nan), 40)) <= 40


def test_parts_may_be_equally_wide_instead():
    rng = np.random.default_rng(2)
    x = np.sort(rng.exponential(size=10_000))  # dense at the left
    y = rng.normal(size=10_000)
    kept = downsample(y, 400, x)
    assert len(kept) <= 400
    parts = np.minimum(((x - x[0]) / (x[-1] - x[0]) * 100).astype(int), 99)
    for part in np.unique(parts):
        everything, inside = y[parts == part], y[kept[parts[kept] == part]]
        assert (inside.min(), inside.max()) == (everything.min(), everything.max())
        assert (inside[0], inside[-1]) == (everything[0], everything[-1])


def test_x_may_be_constant():
    kept = downsample(np.arange(100.0), 12, np.zeros(100))
    assert kept.tolist() == [0, 99]
