"""Measured figures: one alone, or measured twice; with what they were measured on."""

from __future__ import annotations

import dataclasses

from nbllm.core.quantities import fixed, number
from nbllm.core.report.values import finite, finite_all, rebuild, set_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """What a figure was measured on; figures of two reports are comparable where their subjects are equal.

    Args:
        task: The task, as "perplexity".
        text: The name of the text; "" where there is only one.
        fingerprint: SHA-256 of the documents, in hexadecimal.
        stride: Tokens by which the window moved; `None` is half the context.
    """

    task: str
    text: str
    fingerprint: str
    stride: int | None = None

    def name(self, figure: str) -> str:
        """Return a figure's name with the name of the text: "bits per byte on pydocs"."""
        return f"{figure} on {self.text}" if self.text else figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerDocument:
    """What a figure was computed from, document by document; kept in JSON alone, for comparing reports.

    Args:
        subject: What was measured.
        figure: The figure's name without that of the text.
        numerators: (document).
        denominators: (document); the figure is a function of the ratio of the sums.
    """

    subject: Subject
    figure: str
    numerators: tuple[float, ...]
    denominators: tuple[float, ...]

    def __post_init__(self) -> None:
        """Rebuild the subject and numbers of a record."""
        set_fields(self, subject=rebuild(Subject, self.subject))
        set_fields(self, numerators=finite_all(self.numerators), denominators=finite_all(self.denominators))
        if len(self.numerators) != len(self.denominators) or None in self.numerators + self.denominators:
            raise ValueError("every document needs a finite numerator and denominator")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured figure.

    Args:
        name: What was measured: "bits per byte".
        value: `None` where it could not be measured.
        unit: "bits", "tokens/s", ...; "" for none.
        interval: Its lower and upper bound, at `confidence`.
        confidence: The share of repetitions that the interval would cover, as 0.95.
        note: How it was measured, in a few words.
        per_document: What it was computed from.
    """

    name: str
    value: float | int | None
    unit: str = ""
    interval: tuple[float, float] | None = None
    confidence: float = 0.95
    note: str = ""
    per_document: PerDocument | None = None

    def __post_init__(self) -> None:
        """Make the numbers ones that JSON holds."""
        set_fields(self, value=finite(self.value))
        if self.interval is not None:
            low, high = (finite(bound) for bound in self.interval)
            set_fields(self, interval=None if low is None or high is None else (low, high))
        if self.per_document is not None:
            set_fields(self, per_document=rebuild(PerDocument, self.per_document))

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
class Change:
    """One figure, measured twice.

    Args:
        name: What was measured: "bits per byte on pydocs".
        before: The earlier value.
        after: The later one.
        interval: Lower and upper bound of after minus before, at `confidence`.
        confidence: The share of repetitions that the interval would cover, as 0.95.
    """

    name: str
    before: float
    after: float
    interval: tuple[float, float] | None = None
    confidence: float = 0.95

    def __post_init__(self) -> None:
        """Make the numbers ones that JSON holds."""
        set_fields(self, before=finite(self.before), after=finite(self.after))
        if self.interval is not None:
            low, high = (finite(bound) for bound in self.interval)
            set_fields(self, interval=(low, high))
        if None in (self.before, self.after, *(self.interval or ())):
            raise ValueError("a change is between finite numbers")

    @property
    def texts(self) -> tuple[str, str, str, str]:
        """Before, after, the change and its interval, which all end at the same decimal."""
        numbers = (self.before, self.after, self.after - self.before)
        before, after, change = (fixed(value, like=self.before) for value in numbers)
        if self.after > self.before:
            change = f"+{change}"
        return before, after, change, _interval_text(self.interval, self.confidence, like=self.before)


def _interval_text(interval: tuple[float, float] | None, confidence: float, like: float | None) -> str:
    """Return "2.05 to 2.15 (95 %)", with as many decimals as `like` has; "" for none."""
    if interval is None:
        return ""
    low, high = (fixed(bound, like=like) for bound in interval)
    return f"{low} to {high} ({100 * confidence:.3g} %)"
