"""What a report consists of: sections, each plain data that every exporter can show.

A section holds nothing but what JSON holds (text, numbers, `None`, tuples of them), so that a report read
back equals the one written. A number that is not finite becomes `None`: a gap.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

from nbllm.core.errors import DataError, nearest
from nbllm.core.quantities import fixed, number

Cell = str | int | float | bool | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """One part of a report.

    Args:
        title: Its heading; "" goes on under the heading before.
        note: A few sentences below the heading.
    """

    kind: ClassVar[str]
    title: str = ""
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the section as JSON holds it."""
        return {
            "kind": self.kind,
            **{name: _listed(value) for name, value in dataclasses.asdict(self).items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild a section of this kind.

        Raises:
            DataError: A field is unknown, missing or of the wrong type.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise DataError(f"A {cls.kind} section has no field {name!r}.", mend=nearest(name, known))
        try:
            return cls(**values)
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise DataError(f"A {cls.kind} section is malformed: {error}.") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Section):
    """Paragraphs, set apart by empty lines."""

    kind = "text"
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table(Section):
    """Rows of cells under a header.

    Args:
        header: The column names.
        rows: The cells.
        caption: What the table shows.
    """

    kind = "table"
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""

    def __post_init__(self) -> None:
        """Make every cell one that JSON holds."""
        _set(self, header=tuple(str(name) for name in self.header))
        _set(self, rows=tuple(tuple(plain(value) for value in row) for row in self.rows))
        if any(len(row) != len(self.header) for row in self.rows):
            raise ValueError(f"every row of the table {self.title!r} needs {len(self.header)} cells")


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
        _set(self, subject=_rebuild(Subject, self.subject))
        _set(self, numerators=_numbers(self.numerators), denominators=_numbers(self.denominators))
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
        _set(self, value=_number(self.value))
        if self.interval is not None:
            low, high = (_number(bound) for bound in self.interval)
            _set(self, interval=None if low is None or high is None else (low, high))
        if self.per_document is not None:
            _set(self, per_document=_rebuild(PerDocument, self.per_document))

    @property
    def value_text(self) -> str:
        """The value without its unit, to four significant digits; as many decimals as its interval has."""
        if self.value is None:
            return "not measured"
        return number(self.value) if self.interval is None else fixed(self.value)

    @property
    def interval_text(self) -> str:
        """The interval as "2.05 to 2.15 (95 %)"; "" where there is none."""
        if self.interval is None:
            return ""
        low, high = (fixed(bound, like=self.value) for bound in self.interval)
        return f"{low} to {high} ({100 * self.confidence:.3g} %)"


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
        _set(self, before=_number(self.before), after=_number(self.after))
        if self.interval is not None:
            low, high = (_number(bound) for bound in self.interval)
            _set(self, interval=(low, high))
        if None in (self.before, self.after, *(self.interval or ())):
            raise ValueError("a change is between finite numbers")

    @property
    def texts(self) -> tuple[str, str, str, str]:
        """Before, after, the change and its interval, which all end at the same decimal."""
        numbers = [self.before, self.after, self.after - self.before, *(self.interval or ())]
        before, after, change, *bounds = (fixed(value, like=self.before) for value in numbers)
        if self.after > self.before:
            change = f"+{change}"
        interval = f"{bounds[0]} to {bounds[1]} ({100 * self.confidence:.3g} %)" if bounds else ""
        return before, after, change, interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Changes(Section):
    """Figures measured twice: what changed.

    Args:
        changes: The figures.
        caption: What before and after are, and how the intervals were found.
    """

    kind = "changes"
    header: ClassVar[tuple[str, ...]] = ("measure", "before", "after", "change", "interval of the change")
    changes: tuple[Change, ...]
    caption: str = ""

    def __post_init__(self) -> None:
        """Rebuild the changes of a record."""
        _set(self, changes=tuple(_rebuild(Change, change) for change in self.changes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metrics(Section):
    """Measured figures.

    Args:
        metrics: The figures.
        prominent: Whether they are the key figures, shown large.
    """

    kind = "metrics"
    metrics: tuple[Metric, ...]
    prominent: bool = False

    def __post_init__(self) -> None:
        """Rebuild the figures of a record."""
        _set(self, metrics=tuple(_rebuild(Metric, metric) for metric in self.metrics))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart; `None` in `y` is a gap."""

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]

    def __post_init__(self) -> None:
        """Make the numbers ones that JSON holds."""
        x, y = _numbers(self.x), _numbers(self.y)
        if len(x) != len(y) or None in x:
            raise ValueError(f"the line {self.name!r} needs a finite x for every y")
        _set(self, x=x, y=y)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """A moment marked in a chart."""

    x: float
    label: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart(Section):
    """Lines over a common axis.

    Args:
        x_label: What the x axis counts.
        y_label: What the y axis measures, with its unit.
        lines: The data.
        events: Moments to mark.
        log: Whether the y axis is logarithmic.
        caption: What the chart shows.
        minor: Whether the chart stands behind others: it is drawn lower.
    """

    kind = "chart"
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    events: tuple[Event, ...] = ()
    log: bool = False
    caption: str = ""
    minor: bool = False

    def __post_init__(self) -> None:
        """Rebuild the lines and events of a record."""
        _set(self, lines=tuple(_rebuild(Line, line) for line in self.lines))
        _set(self, events=tuple(_rebuild(Event, event) for event in self.events))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Text that a model wrote.

    Args:
        prompt: What it continued.
        text: The continuation.
        label: Whence it is: "step 600".
    """

    prompt: str
    text: str
    label: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples(Section):
    """Texts that a model wrote."""

    kind = "samples"
    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        """Rebuild the samples of a record."""
        _set(self, samples=tuple(_rebuild(Sample, sample) for sample in self.samples))


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyValues(Section):
    """Names and their values: settings, versions, facts of a machine."""

    kind = "key-values"
    entries: tuple[tuple[str, Cell], ...]

    def __post_init__(self) -> None:
        """Make every value one that JSON holds."""
        pairs = self.entries.items() if isinstance(self.entries, Mapping) else self.entries
        _set(self, entries=tuple((str(name), plain(value)) for name, value in pairs))


KINDS: dict[str, type[Section]] = {
    kind.kind: kind for kind in (Text, Table, Metrics, Changes, Chart, Samples, KeyValues)
}


def section_from_dict(values: Any) -> Section:
    """Rebuild any section.

    Raises:
        DataError: The kind is unknown, or a field is.
    """
    if not isinstance(values, Mapping) or not isinstance(values.get("kind"), str):
        raise DataError("A section needs a kind.")
    fields = dict(values)
    kind = fields.pop("kind")
    if kind not in KINDS:
        raise DataError(f"There is no kind of section named {kind!r}.", mend=nearest(kind, KINDS))
    return KINDS[kind].from_dict(fields)


def plain(value: Any) -> Cell:
    """Return a value as a table cell holds it: text, a number, a truth value or `None`."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, numbers.Real):
        return _number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={plain(item)}" for name, item in value.items())
    if isinstance(value, Sequence):
        return ", ".join(str(plain(item)) for item in value)
    return str(value)


def _number(value: Any) -> int | float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{value!r} is no number")
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None


def _numbers(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(_number(value) for value in values)


def _listed(value: Any) -> Any:
    """Return a value with lists for tuples, all the way down."""
    if isinstance(value, Mapping):
        return {name: _listed(item) for name, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (tuple, list)) else value


def _rebuild(kind: type[Any], value: Any) -> Any:
    return value if isinstance(value, kind) else kind(**value)


def _set(instance: Any, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(instance, name, value)
