"""What rules remember, against NumPy on the whole series."""

import math

import numpy as np
import pytest

from nbllm.runs.recent_metrics import MAX_WINDOW, WINDOWS, RecentMetrics, Values


def filled(values, first=1):
    out = Values()
    for step, value in enumerate(values, first):
        out.add(step, value)
    return out


@pytest.fixture
def numbers():
    return np.random.default_rng(0).normal(3, 1, 60)


@pytest.mark.parametrize("name", list(WINDOWS))
@pytest.mark.parametrize("num", [2, 7, 60])
def test_functions_of_the_newest_values(numbers, name, num):
    window, steps = numbers[-num:], np.arange(61 - num, 61)
    weights = (1 - 2 / (num + 1)) ** np.arange(num)[::-1]
    expected = {
        "last": window[0],
        "mean": np.mean(window),
        "median": np.median(window),
        "min": np.min(window),
        "max": np.max(window),
        "std": np.std(window),
        "slope": np.polyfit(steps, window, 1)[0],
        "ema": np.average(window, weights=weights),
    }[name]
    assert WINDOWS[name][1](*filled(numbers).window(num)) == pytest.approx(expected)


def test_a_window_that_is_not_full_is_none(numbers):
    assert filled(numbers).window(61) is None
    assert Values().window(1) is None
    assert Values().place_of_best(0.0) is None


def test_the_slope_is_per_step_where_steps_are_far_apart():
    values = Values()
    for step in (100, 200, 300):
        values.add(step, step * 0.5)
    assert WINDOWS["slope"][1](*values.window(3)) == pytest.approx(0.5)


@pytest.mark.parametrize("tolerance", [0.0, 0.01, 0.3])
def test_the_best_is_what_a_plain_loop_finds(numbers, tolerance):
    best = 0
    for place, value in enumerate(numbers):
        if value < numbers[best] - tolerance * abs(numbers[best]):
            best = place
    assert filled(numbers).place_of_best(tolerance) == best


def test_a_cut_leaves_what_an_uncut_memory_had_at_that_step(numbers):
    for step in (1, 30, 59, 60, 100):
        cut, short = filled(numbers), filled(numbers[:step])
        cut.cut(step)
        assert (cut.steps, cut.finite) == (short.steps, short.finite)
        assert (cut.newest, cut.newest_step) == (short.newest, short.newest_step)
    cut.cut(0)
    assert (cut.newest, cut.newest_step, len(cut.steps)) == (None, -1, 0)


def test_a_value_at_a_step_that_was_there_supersedes_it():
    values = filled([5.0, 4.0, 3.0])
    values.add(2, 9.0)
    assert (list(values.steps), list(values.finite), values.newest) == ([1, 2], [5.0, 9.0], 9.0)


def test_a_nan_is_the_newest_until_the_run_goes_back():
    values = filled([5.0, math.nan])
    assert math.isnan(values.newest)
    assert list(values.finite) == [5.0]
    values.cut(1)
    assert values.newest == 5.0


def test_memory_is_bounded_and_keeps_the_newest():
    values = filled(np.arange(3 * MAX_WINDOW, dtype=float))
    assert len(values.steps) <= 2 * MAX_WINDOW
    window, steps = values.window(MAX_WINDOW)
    assert window[-1] == 3 * MAX_WINDOW - 1
    assert steps[-1] - steps[0] == MAX_WINDOW - 1
    assert values.finite[values.place_of_best(0.0)] == window[0]


def test_what_is_new_is_known_once():
    memory = RecentMetrics()
    memory.add("loss", 1, 2.0)
    memory.add("lr", 1, 2.0)
    assert memory.news == {"loss", "lr"}
    memory.cut(0)
    assert memory.news == set()
    assert memory["loss"].newest is None
    assert memory["never"].newest is None
    assert "never" not in memory
