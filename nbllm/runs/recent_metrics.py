"""The newest values of a run's metrics, and the functions of them that conditions may use."""

from __future__ import annotations

import bisect
import dataclasses
import math
from array import array
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

MAX_WINDOW = 10_000  # values of a metric that are remembered


class RecentMetrics:
    """The newest values of each metric on the current branch: what conditions look at."""

    def __init__(self) -> None:
        self._metrics: dict[str, Values] = {}
        self.news: set[str] = set()  # metrics with a value that no rule has looked at yet

    def add(self, metric: str, step: int, value: float) -> None:
        """Take a value; of the evaluations at one step, the last counts."""
        self._metrics.setdefault(metric, Values()).add(step, float(value))
        self.news.add(metric)

    def cut(self, step: int) -> None:
        """Forget what came after `step`: the run went back."""
        for values in self._metrics.values():
            values.cut(step)
        self.news.clear()

    def __getitem__(self, metric: str) -> Values:
        return self._metrics.get(metric, _NONE)

    def __contains__(self, metric: object) -> bool:
        return metric in self._metrics

    def __iter__(self) -> Iterator[str]:
        return iter(self._metrics)


class Values:
    """The finite values of a metric with their steps, and the newest, finite or not."""

    def __init__(self) -> None:
        self.steps = array("q")
        self.finite = array("d")
        self.newest: float | None = None
        self.newest_step = -1

    def add(self, step: int, value: float) -> None:
        """Take the value at `step`; one there already is superseded."""
        if step <= self.newest_step:
            self.cut(step - 1)
        self.newest, self.newest_step = value, step
        if math.isfinite(value):
            self.steps.append(step)
            self.finite.append(value)
            if len(self.steps) > 2 * MAX_WINDOW:
                del self.steps[:-MAX_WINDOW], self.finite[:-MAX_WINDOW]

    def cut(self, step: int) -> None:
        """Forget what came after `step`."""
        end = bisect.bisect_right(self.steps, step)
        del self.steps[end:], self.finite[end:]
        if self.newest_step > step:
            self.newest, self.newest_step = (self.finite[-1], self.steps[-1]) if end else (None, -1)

    def window(self, num: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
        """Return the `num` newest finite values and their steps; `None` when there are fewer."""
        if len(self.steps) < num:
            return None
        return np.array(self.finite[-num:]), np.array(self.steps[-num:])

    def place_of_best(self, tolerance: float) -> int | None:
        """Return where the lowest value is; one lower by less than the share `tolerance` is not a new one."""
        if not self.steps:
            return None
        values = np.array(self.finite[-MAX_WINDOW:])
        lowest = np.minimum.accumulate(values)
        (records,) = np.nonzero(np.concatenate(([True], values[1:] < lowest[:-1])))
        best = 0
        for place in records[1:]:
            if values[place] < values[best] - tolerance * abs(values[best]):
                best = int(place)
        return len(self.steps) - len(values) + best


_NONE = Values()


def _slope(values: np.ndarray[Any, Any], steps: np.ndarray[Any, Any]) -> float:
    """Return the slope per step of the least-squares line."""
    centred = steps - steps.mean()
    return float(centred @ (values - values.mean()) / (centred @ centred))


def _ema(values: np.ndarray[Any, Any]) -> float:
    """Return the mean with weights that fall off by 1 - 2/(n + 1) a value, the newest first."""
    weights = (1 - 2 / (len(values) + 1)) ** np.arange(len(values) - 1, -1, -1)
    return float(weights @ values / weights.sum())


_Function = Callable[[np.ndarray[Any, Any], np.ndarray[Any, Any]], float]
WINDOWS: dict[str, tuple[int, _Function]] = {  # smallest window; of (values, steps)
    "last": (1, lambda values, steps: float(values[0])),
    "mean": (1, lambda values, steps: float(values.mean())),
    "median": (1, lambda values, steps: float(np.median(values))),
    "min": (1, lambda values, steps: float(values.min())),
    "max": (1, lambda values, steps: float(values.max())),
    "std": (2, lambda values, steps: float(values.std())),
    "slope": (2, _slope),
    "ema": (1, lambda values, steps: _ema(values)),
}


@dataclasses.dataclass(frozen=True)
class MetricFunction:
    """A function of the newest values of a metric, and of a number.

    Args:
        compute: Takes the values, the number and the step at which the rule last acted (-1 when it has not); returns
            the result, and the step of the oldest value that it depends on. `None`: there are too few values.
        low: Smallest number.
        high: Largest number.
        is_count: The number is a whole one, and must be given; else it is a share below `high`, 0 when not given.
    """

    compute: Callable[[Values, float, int], tuple[float, int] | None]
    low: int = 0
    high: int = MAX_WINDOW
    is_count: bool = True


def _of_window(least: int, act: _Function) -> MetricFunction:
    def compute(values: Values, num: float, acted_at: int) -> tuple[float, int] | None:
        found = values.window(int(num))
        return None if found is None else (act(*found), int(found[1][0]))

    return MetricFunction(compute, low=least)


def _best(values: Values, tolerance: float, acted_at: int) -> tuple[float, int] | None:
    place = values.place_of_best(tolerance)
    if place is None:
        return None
    return values.finite[place], values.steps[min(place + 1, len(values.steps) - 1)]


def _since_best(values: Values, tolerance: float, acted_at: int) -> tuple[float, int] | None:
    place = values.place_of_best(tolerance)
    if place is None:
        return None
    since_acted = len(values.steps) - bisect.bisect_right(values.steps, acted_at)
    since_best = len(values.steps) - 1 - place
    return float(min(since_best, since_acted)), values.steps[min(place + 1, len(values.steps) - 1)]


FUNCTIONS = {
    **{name: _of_window(least, act) for name, (least, act) in WINDOWS.items()},
    "best": MetricFunction(_best, high=0, is_count=False),
    "since_best": MetricFunction(_since_best, high=1, is_count=False),
}
