"""What a report consists of: sections, each plain data that every exporter can show.

A section holds nothing but what JSON holds (text, numbers, `None`, tuples of them), so that a report read
back equals the one written. A number that is not finite becomes `None`: a gap.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from nbllm.core.errors import DataError, nearest
from nbllm.core.report.figures import Change, Metric
from nbllm.core.report.values import Cell, finite_all, listed, plain, rebuild, set_fields


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
            **{name: listed(value) for name, value in dataclasses.asdict(self).items()},
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
                raise DataError(f"A {cls.kind} section has no field {name!r}.", hint=nearest(name, known))
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
        set_fields(self, header=tuple(str(name) for name in self.header))
        set_fields(self, rows=tuple(tuple(plain(value) for value in row) for row in self.rows))
        if any(len(row) != len(self.header) for row in self.rows):
            raise ValueError(f"every row of the table {self.title!r} needs {len(self.header)} cells")


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
        set_fields(self, changes=tuple(rebuild(Change, change) for change in self.changes))


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
        set_fields(self, metrics=tuple(rebuild(Metric, metric) for metric in self.metrics))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart; `None` in `y` is a gap."""

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]

    def __post_init__(self) -> None:
        """Make the numbers ones that JSON holds."""
        x, y = finite_all(self.x), finite_all(self.y)
        if len(x) != len(y) or None in x:
            raise ValueError(f"the line {self.name!r} needs a finite x for every y")
        set_fields(self, x=x, y=y)


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
        set_fields(self, lines=tuple(rebuild(Line, line) for line in self.lines))
        set_fields(self, events=tuple(rebuild(Event, event) for event in self.events))


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
        set_fields(self, samples=tuple(rebuild(Sample, sample) for sample in self.samples))


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyValues(Section):
    """Names and their values: settings, versions, facts of a machine."""

    kind = "key-values"
    entries: tuple[tuple[str, Cell], ...]

    def __post_init__(self) -> None:
        """Make every value one that JSON holds."""
        pairs = self.entries.items() if isinstance(self.entries, Mapping) else self.entries
        set_fields(self, entries=tuple((str(name), plain(value)) for name, value in pairs))


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
        raise DataError(f"There is no kind of section named {kind!r}.", hint=nearest(kind, KINDS))
    return KINDS[kind].from_dict(fields)
