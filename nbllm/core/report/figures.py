"""Measured figures: one alone, or measured twice; with what they were measured on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from nbllm.core.quantities import fixed, number
from nbllm.core.report.values import Cell, Record, set_fields

BETTER = ("lower", "higher", "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject(Record):
    """What was measured; figures of two reports are comparable where their subjects are equal.

    Args:
        task: The task's registered name, as "perplexity".
        data: The name of the data; "" where there is only one set of it.
        fingerprint: SHA-256 of the examples, in hexadecimal.
        settings: The task's settings: (name, value).
    """

    task: str
    data: str
    fingerprint: str
    settings: tuple[tuple[str, Cell], ...] = ()

    def name(self, figure: str) -> str:
        """Return a figure's name with the name of the data: "bits per byte on pydocs"."""
        return f"{figure} on {self.data}" if self.data else figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement(Record):
    """One measured figure.

    Args:
        name: What was measured, as it is shown: "bits per byte on pydocs".
        value: `None` where it could not be measured.
        unit: "bits", "tokens/s", ...; "" for none.
        interval: Its lower and upper bound, at `confidence`.
        confidence: The share of repetitions that the interval would cover, as 0.95.
        method: How the interval was found: "wilson" or "bootstrap"; "" where that is not known.
        note: How it was measured, in a few words.
        metric: The registered name of the metric, as "bits_per_byte"; "" for a figure that none computed.
        settings: The metric's settings: (name, value).
        subject: What the metric was computed on.
        better: "lower" or "higher"; "" where neither is better.
        model: The name of the model, in a report of several.
        signature: How it was made, in one line that tells comparable figures from others.
    """

    name: str
    value: float | int | None
    unit: str = ""
    interval: tuple[float, float] | None = None
    confidence: float = 0.95
    method: str = ""
    note: str = ""
    metric: str = ""
    settings: tuple[tuple[str, Cell], ...] = ()
    subject: Subject | None = None
    better: str = ""
    model: str = ""
    signature: str = ""

    def __post_init__(self) -> None:
        """Drop an interval with a bound that is not finite."""
        interval = self.interval
        if isinstance(interval, tuple) and any(
            isinstance(b, float) and not math.isfinite(b) for b in interval
        ):
            set_fields(self, interval=None)
        super().__post_init__()
        _check_better(self.better)

    @property
    def value_text(self) -> str:
        """The value without its unit, to four significant digits; as many decimals as its interval has."""
        if self.value is None:
            return "not measured"
        return number(self.value) if self.interval is None else fixed(self.value)

    @property
    def interval_text(self) -> str:
        """The interval as "2.05 to 2.15 (95 %)"; "" where there is none."""
        return _interval_text(self.interval, self.confidence, like=self.value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change(Record):
    """One figure, measured twice.

    Args:
        name: What was measured, as it is shown: "bits per byte on pydocs".
        before: The earlier value.
        after: The later one.
        interval: Lower and upper bound of after minus before, at `confidence`.
        confidence: The share of repetitions that the interval would cover, as 0.95.
        metric: The registered name of the metric.
        better: "lower" or "higher"; "" where neither is better.
    """

    name: str
    before: float
    after: float
    interval: tuple[float, float] | None = None
    confidence: float = 0.95
    metric: str = ""
    better: str = ""

    def __post_init__(self) -> None:
        """Check the direction too."""
        super().__post_init__()
        _check_better(self.better)

    @property
    def texts(self) -> tuple[str, str, str, str]:
        """Before, after, the change and its interval, which all end at the same decimal."""
        numbers = (self.before, self.after, self.after - self.before)
        before, after, change = (fixed(value, like=self.before) for value in numbers)
        if self.after > self.before:
            change = f"+{change}"
        return before, after, change, _interval_text(self.interval, self.confidence, like=self.before)

    @property
    def verdict(self) -> str:
        """Whether the change is "good" or "bad"; "" where the interval includes zero or neither direction is better."""
        if self.interval is None or not self.better or self.interval[0] <= 0 <= self.interval[1]:
            return ""
        return "good" if (self.after < self.before) == (self.better == "lower") else "bad"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison(Record):
    """One figure of two models, on the same examples.

    Args:
        name: What was measured, as it is shown: "accuracy on mmlu".
        models: The names of the two.
        values: Their figures.
        interval: Lower and upper bound of the second minus the first, at `confidence`.
        confidence: The share of repetitions that the interval would cover, as 0.95.
        metric: The registered name of the metric.
        subject: What the metric was computed on.
        better: "lower" or "higher"; "" where neither is better.
        num_rows: Examples.
        p_values: By test, "mcnemar", "bootstrap" or "randomization".
        test: Whose p-value is corrected.
        p_corrected: That p-value, corrected for the number of comparisons.
        effect: Cohen's d for paired values.
        needed: Examples that would show a difference of this size.
        alone: Of a proportion, how many examples each model alone has right.
        flips: Of a proportion, which examples these are, from 0.
    """

    name: str
    models: tuple[str, str]
    values: tuple[float, float]
    interval: tuple[float, float] | None = None
    confidence: float = 0.95
    metric: str = ""
    subject: Subject | None = None
    better: str = ""
    num_rows: int
    p_values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    test: str = ""
    p_corrected: float | None = None
    effect: float | None = None
    needed: int | None = None
    alone: tuple[int, int] | None = None
    flips: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the direction too."""
        super().__post_init__()
        _check_better(self.better)

    @property
    def difference(self) -> float:
        """The second figure minus the first."""
        return self.values[1] - self.values[0]

    @property
    def texts(self) -> tuple[str, str, str, str]:
        """Both figures, their difference and its interval, which all end at the same decimal."""
        like = max(self.values, key=abs)
        first, second, change = (fixed(value, like=like) for value in (*self.values, self.difference))
        change = f"+{change}" if self.difference > 0 else change
        return first, second, change, _interval_text(self.interval, self.confidence, like=like)

    @property
    def bare_texts(self) -> tuple[str, str, str, str]:
        """The same, the interval without its confidence, which a table's header says."""
        *values, interval = self.texts
        return values[0], values[1], values[2], interval.partition(" (")[0]

    @property
    def winner(self) -> str:
        """The name of the model that is better by the corrected test; "" where chance may explain it."""
        if self.p_corrected is None or self.p_corrected >= 1 - self.confidence or not self.better:
            return ""
        return self.models[(self.difference > 0) == (self.better == "higher")]


def p_text(value: float | None) -> str:
    """Return a p-value as it is written: "0.031", "< 0.001"; "" for none."""
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _check_better(better: str) -> None:
    if better not in BETTER:
        raise ValueError(f"better is {better!r}; it must be one of {', '.join(map(repr, BETTER))}")


def _interval_text(interval: tuple[float, float] | None, confidence: float, like: float | None) -> str:
    """Return "2.05 to 2.15 (95 %)", with as many decimals as `like` has; "" for none."""
    if interval is None:
        return ""
    low, high = (fixed(bound, like=like) for bound in interval)
    return f"{low} to {high} ({100 * confidence:.3g} %)"
