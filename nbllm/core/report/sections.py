"""What a report consists of: sections, each plain data that every exporter can show.

A section holds nothing but what JSON holds (text, numbers, `None`, tuples of them), so that a report read
back equals the one written. A number that is not finite becomes `None`: a gap.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

from nbllm.core.errors import DataError, nearest
from nbllm.core.quantities import number
from nbllm.core.report.figures import Change, Comparison, Measurement, Subject, p_text
from nbllm.core.report.values import Cell, Record, Value, listed, plain, set_fields

_SHOWN_CHARACTERS = 200  # of a cell of a row
_DROPPED = "dropped_"  # begins the names of columns that count what a too long prompt lost


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section(Record):
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
        folded: On a page, the line under which the table unfolds; "" shows it at once.
    """

    kind = "table"
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    folded: str = ""

    def __post_init__(self) -> None:
        """Check that every row has a cell for each column."""
        super().__post_init__()
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparisons(Section):
    """Figures of two models each, with the tests of whether they differ.

    Args:
        comparisons: The figures.
        caption: How the tests were made.
    """

    kind = "comparisons"
    comparisons: tuple[Comparison, ...]
    caption: str = ""

    def tables(self) -> Iterator[TextTable]:
        """Yield the header and the rows of a table for each pair of models: figures, difference and verdict."""
        for models, found in self._by_pair():
            percent = f"{100 * found[0].confidence:.3g} % interval"
            header = ("measure", *models, "difference", percent, "p, corrected", "better")
            yield (
                header,
                [(each.name, *each.bare_texts, p_text(each.p_corrected), _better(each)) for each in found],
            )

    def details(self) -> Iterator[TextTable]:
        """Yield the header and the rows of a table for each pair of models: every test, effect size, what is needed."""
        for models, found in self._by_pair():
            rows = [_tested(each) for each in found]
            header = (f"{models[0]} and {models[1]}", *_TESTS.values(), *_TOLD)
            keep = [i for i in range(len(header)) if i == 0 or any(row[i] for row in rows)]
            yield tuple(header[i] for i in keep), [tuple(row[i] for i in keep) for row in rows]

    def matrices(self) -> Iterator[tuple[str, tuple[str, ...], list[list[Comparison | None]]]]:
        """Yield, where there are more than two models, for each task its first figure's name, the models, and a matrix.

        Row i and column j hold the comparison of the models i and j, whichever of the two is its first.
        """
        models = tuple(dict.fromkeys(model for each in self.comparisons for model in each.models))
        firsts: dict[object, str] = {}
        for each in self.comparisons:
            firsts.setdefault(each.subject or each.name, each.name)
        for name in firsts.values() if len(models) > 2 else ():
            found = {each.models: each for each in self.comparisons if each.name == name}
            yield name, models, [[found.get((i, j)) or found.get((j, i)) for j in models] for i in models]

    def _by_pair(self) -> Iterator[tuple[tuple[str, str], list[Comparison]]]:
        for models in dict.fromkeys(each.models for each in self.comparisons):
            yield models, [each for each in self.comparisons if each.models == models]


TextTable = tuple[tuple[str, ...], list[tuple[str, ...]]]
_TESTS = {"mcnemar": "p, McNemar", "bootstrap": "p, bootstrap", "randomization": "p, randomization"}
_TOLD = ("effect size", "examples needed", "right alone")


def _better(each: Comparison) -> str:
    return each.winner or ("undecided" if each.better and each.p_corrected is not None else "")


def _tested(each: Comparison) -> tuple[str, ...]:
    tests = (p_text(each.p_values.get(name)) for name in _TESTS)
    effect = "" if each.effect is None else f"{each.effect:+.2f}"
    needed = "" if each.needed is None else number(each.needed)
    alone = "" if each.alone is None else "{:,} and {:,}".format(*each.alone)
    return (each.name, *tests, effect, needed, alone)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurements(Section):
    """Measured figures.

    Args:
        measurements: The figures.
        prominent: Whether they are the key figures, shown large.
    """

    kind = "measurements"
    measurements: tuple[Measurement, ...]
    prominent: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows(Section):
    """What figures were computed from: one row for each example that was measured, in the order of the examples.

    The record holds every row; a page shows the first few.

    Args:
        subject: What was measured.
        columns: The values by column name, each column with a value for every row.
        num_examples: Examples that there were to measure: more than rows after an interruption.
        unit: What a row is: "documents".
        cluster: The column whose equal values mark rows that are not independent; "" for none.
        shown: How many rows a page shows.
        model: The name of the model, in a report of several.
    """

    kind = "rows"
    subject: Subject
    columns: Mapping[str, tuple[Value, ...]]
    num_examples: int
    unit: str = "examples"
    cluster: str = ""
    shown: int = 10
    model: str = ""

    def __post_init__(self) -> None:
        """Check that the columns fit together."""
        super().__post_init__()
        lengths = {len(values) for values in self.columns.values()}
        if len(lengths) != 1:
            raise ValueError(f"the columns of {self.subject.task!r} must have a value for every row")
        if lengths.pop() > self.num_examples:
            raise ValueError(f"there are more rows of {self.subject.task!r} than examples")
        if self.cluster and self.cluster not in self.columns:
            raise ValueError(f"there is no column {self.cluster!r} to cluster by")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    @property
    def shown_columns(self) -> tuple[str, ...]:
        """The columns that a page shows: all but those of what was dropped, where nothing was."""
        return tuple(
            name for name, values in self.columns.items() if not name.startswith(_DROPPED) or any(values)
        )

    def first_rows(self) -> list[tuple[Cell, ...]]:
        """Return the rows that a page shows, one cell a shown column: long texts cut, lists of numbers rounded."""
        columns = [self.columns[name][: self.shown] for name in self.shown_columns]
        return [tuple(shortened(value) for value in row) for row in zip(*columns, strict=True)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line(Record):
    """One line of a chart; `None` in `y` is a gap."""

    name: str
    x: tuple[float, ...]
    y: tuple[float | None, ...]

    def __post_init__(self) -> None:
        """Check that x and y go together."""
        super().__post_init__()
        if len(self.x) != len(self.y):
            raise ValueError(f"the line {self.name!r} needs an x for every y")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event(Record):
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
        minor: Whether the chart is less important than others: it is drawn lower.
    """

    kind = "chart"
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    events: tuple[Event, ...] = ()
    log: bool = False
    caption: str = ""
    minor: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar(Record):
    """One bar: a group's figure.

    Args:
        name: The group.
        value: Its figure, not negative.
        interval: Lower and upper bound.
        count: How many rows it has.
    """

    name: str
    value: float
    interval: tuple[float, float] | None = None
    count: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bars(Section):
    """A figure by group, as horizontal bars.

    Args:
        bars: In their order.
        x_label: What they measure.
        unit: What is counted: "questions".
        marked: A value at which a dashed line stands.
        caption: What the bars show.
    """

    kind = "bars"
    bars: tuple[Bar, ...]
    x_label: str
    unit: str = "examples"
    marked: float | None = None
    caption: str = ""

    def table(self) -> tuple[tuple[str, ...], list[tuple[Cell, ...]]]:
        """Return the header and the rows of the same as a table."""
        rows: list[tuple[Cell, ...]] = [(bar.name, bar.count, bar.value, *_bounds(bar)) for bar in self.bars]
        return ("group", self.unit, self.x_label, "from", "to"), rows


def _bounds(bar: Bar) -> tuple[float | None, float | None]:
    return bar.interval or (None, None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(Record):
    """Text that a model wrote.

    Args:
        prompt: What it continued.
        text: The continuation.
        label: Where it comes from: "step 600".
    """

    prompt: str
    text: str
    label: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples(Section):
    """Texts that a model wrote."""

    kind = "samples"
    samples: tuple[Sample, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyValues(Section):
    """Names and their values: settings, versions, facts of a machine."""

    kind = "key-values"
    entries: tuple[tuple[str, Cell], ...]

    def __post_init__(self) -> None:
        """Take a mapping too."""
        if isinstance(self.entries, Mapping):
            set_fields(self, entries=tuple(self.entries.items()))
        super().__post_init__()


def shortened(value: Value) -> Cell:
    """Return a value of a row as a page shows it: a long text cut, each number of a list rounded."""
    if isinstance(value, (list, tuple)):
        value = tuple(number(each) if isinstance(each, float) else each for each in value)
    cell = plain(value)
    return (
        f"{cell[: _SHOWN_CHARACTERS - 1]}…"
        if isinstance(cell, str) and len(cell) > _SHOWN_CHARACTERS
        else cell
    )


KINDS: dict[str, type[Section]] = {
    kind.kind: kind
    for kind in (Text, Table, Measurements, Changes, Comparisons, Rows, Chart, Bars, Samples, KeyValues)
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
