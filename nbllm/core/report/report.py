"""`Report`: what was made and measured, as one record that is shown, saved, read back and added to."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from nbllm.core.errors import DataError, UserError, nearest
from nbllm.core.io import expand_user, read_json, write_atomic
from nbllm.core.registry import Registry
from nbllm.core.report.figures import Change, Comparison, Measurement
from nbllm.core.report.html import to_fragment, to_page
from nbllm.core.report.latex import to_latex
from nbllm.core.report.markdown import to_markdown
from nbllm.core.report.pdf import to_pdf
from nbllm.core.report.provenance import Provenance
from nbllm.core.report.sections import Changes, Comparisons, Measurements, Rows, Section, section_from_dict
from nbllm.core.report.tables import to_csv, to_parquet
from nbllm.core.report.values import listed
from nbllm.core.text_table import text_table

SCHEMA = "nbllm-report/2"
MAX_BYTES = 1 << 28  # of a report that is read

_Named = TypeVar("_Named", Measurement, Change, Comparison)
exporters: Registry[Callable[[Report], str | bytes]] = Registry("report format")


def _generator() -> str:
    import nbllm

    return f"nbllm {nbllm.__version__}"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class HasSections(Protocol):
    """What can stand in a report."""

    def sections(self) -> list[Section]:
        """Return it as sections."""
        ...


@dataclasses.dataclass
class Report:
    """A report: a title and sections in their order.

    Shown in a cell it is rendered; `print` shows its Markdown. Whatever measures adds a section; there is no
    other kind of report.

    Args:
        title: Its heading.
        sections: Its parts.
        created: When, as ISO 8601 in UTC.
        generator: The program and version that made it.
        provenance: How the figures of each model were made, which `nb.reproduce` reads.
        inputs: The models and data that were measured, for `nb.reproduce` in the same session; they are not saved.
    """

    title: str
    sections: list[Section] = dataclasses.field(default_factory=list)
    created: str = dataclasses.field(default_factory=_now)
    generator: str = dataclasses.field(default_factory=_generator)
    provenance: tuple[Provenance, ...] = ()
    inputs: Any = dataclasses.field(default=None, repr=False, compare=False)

    def add(self, *parts: Section | HasSections | Report) -> Self:
        """Append sections, what has sections (`nb.compare(...)`), or those of another report; return the report.

        Raises:
            UserError: Something is none of these.
        """
        for part in parts:
            if isinstance(part, Section):
                self.sections.append(part)
            elif isinstance(part, Report):
                self.sections.extend(part.sections)
                self.provenance += part.provenance
            elif callable(getattr(part, "sections", None)):
                self.sections.extend(part.sections())
            else:
                raise UserError(
                    f"{type(part).__name__} is no part of a report.",
                    hint="Add another report, what nb.compare(...) returned, or sections of nbllm.core.report.",
                )
        return self

    def __add__(self, other: Report) -> Report:
        """Return this report with the sections of another after its own."""
        if not isinstance(other, Report):
            return NotImplemented
        return dataclasses.replace(
            self,
            sections=[*self.sections, *other.sections],
            provenance=self.provenance + other.provenance,
        )

    def measurements(self) -> Iterator[Measurement]:
        """Yield every figure, in the order of the sections."""
        for section in self.sections:
            if isinstance(section, Measurements):
                yield from section.measurements

    def metric(self, name: str, model: str | None = None) -> Measurement:
        """Return the first figure of that name, as it is shown or as its metric or its task is registered.

        Args:
            name: "bits per byte on pydocs", "bits_per_byte", or "perplexity" for the first figure of that task where no
                metric has the name.
            model: The name of the model, in a report of several; `None` is the first that has it.

        Raises:
            UserError: There is none; the nearest name is given.
        """
        found = [each for each in self.measurements() if model in (None, each.model)]
        if model is not None and not found:
            raise UserError(
                f"The report has no model named {model!r}.",
                hint=nearest(model, {each.model for each in self.measurements() if each.model}),
            )
        return _first(name, found, "figure")

    def change(self, name: str) -> Change:
        """Return the first change of the figure of that name, where the report compares with an earlier one.

        Args:
            name: As for `metric`.

        Raises:
            UserError: There is none; the nearest name is given.
        """
        sections = (section for section in self.sections if isinstance(section, Changes))
        return _first(name, (change for section in sections for change in section.changes), "change")

    def comparison(self, name: str, models: tuple[str, str] | None = None) -> Comparison:
        """Return the first comparison of two models by the figure of that name.

        Args:
            name: As for `metric`.
            models: The names of the two, in their order; `None` is the first pair.

        Raises:
            UserError: There is none; the nearest name is given.
        """
        sections = (section for section in self.sections if isinstance(section, Comparisons))
        found = (each for section in sections for each in section.comparisons)
        return _first(name, (each for each in found if models in (None, each.models)), "comparison")

    def rows(self, task: str | None = None, model: str | None = None) -> Rows:
        """Return the rows that figures were computed from, one for each example.

        Args:
            task: The task's name; `None` is the first task.
            model: The name of the model, in a report of several; `None` is the first.

        Raises:
            UserError: Nothing was measured, or not by that task.
        """
        found: dict[str, Rows] = {}
        for section in self.sections:
            if isinstance(section, Rows) and model in (None, section.model):
                found.setdefault(section.subject.task, section)
        if not found:
            raise UserError("The report holds no rows: nothing was measured example by example.")
        task = next(iter(found)) if task is None else task
        if task not in found:
            raise UserError(f"The report has no rows of a task named {task!r}.", hint=nearest(task, found))
        return found[task]

    def to_dict(self) -> dict[str, Any]:
        """Return the record: what JSON holds."""
        return {
            "schema": SCHEMA,
            "title": self.title,
            "created": self.created,
            "generator": self.generator,
            "provenance": [listed(dataclasses.asdict(each)) for each in self.provenance],
            "sections": [section.to_dict() for section in self.sections],
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], *, where: object = None) -> Self:
        """Rebuild a report from its record.

        Args:
            record: What `to_dict` returned.
            where: The file that it came from, for error messages.

        Raises:
            DataError: The record is not a report, is of another schema version, or a section is malformed.
        """
        _check_schema(record, where)
        sections = []
        for number, values in enumerate(record.get("sections", ()), start=1):
            try:
                sections.append(section_from_dict(values))
            except DataError as error:
                place = f"{'' if where is None else f'{where}, '}section {number}"
                raise DataError(error.what, where=place, hint=error.hint) from error
        texts = {name: record.get(name, "") for name in ("title", "created", "generator")}
        for name, text in texts.items():
            if not isinstance(text, str):
                raise DataError(f"This is not a report: its {name} is not a text.", where=where)
        return cls(sections=sections, provenance=_provenance(record.get("provenance", ()), where), **texts)

    def save(self, path: str | Path) -> Path:
        """Write the report in the format of the path's suffix: .html, .md, .tex, .json or .pdf; or its examples.

        The file is written whole or not at all; folders that do not exist are made. HTML is one self-contained page.
        PDF is that page printed by an installed Chromium or Chrome. .csv and .parquet are a table of the rows of all
        examples.

        Returns:
            The path.

        Raises:
            UserError: The suffix is none of these, the file cannot be written, or there is no browser to print with.
        """
        path = expand_user(path)
        suffix = path.suffix.lower()
        if suffix not in exporters:
            raise UserError(
                f"A report cannot be saved as {path.suffix or 'a file without suffix'}.",
                where=path,
                hint=f"Use one of {', '.join(exporters)}.",
            )
        content = exporters[suffix](self)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, content)
        except OSError as error:
            raise UserError(
                f"The report cannot be written: {error.strerror or error}.", where=path
            ) from error
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a report back from its JSON.

        Raises:
            DataError: The file cannot be read, is not a report, or is of another schema version.
        """
        path = expand_user(path)
        try:
            record = read_json(path, MAX_BYTES)
        except OSError as error:
            raise DataError(f"The report cannot be read: {error.strerror or error}.", where=path) from error
        except ValueError as error:
            hint = "Reports are read from their .json." if path.suffix.lower() != ".json" else None
            raise DataError(f"The file is not JSON: {error}.", where=path, hint=hint) from error
        return cls.from_dict(record, where=path)

    def __repr__(self) -> str:
        first = next((each for each in self.sections if isinstance(each, Measurements)), None)
        figures = [] if first is None else first.measurements
        rows = [(f"  {m.name}", f"{m.value_text} {m.unit}".strip(), m.interval_text) for m in figures]
        return "\n".join([f"Report({self.title!r})", *([text_table(rows)] if rows else [])])

    def __str__(self) -> str:
        return to_markdown(self)

    def _repr_html_(self) -> str:
        return to_fragment(self)

    def _repr_markdown_(self) -> str:
        return to_markdown(self)


def _provenance(values: Any, where: object) -> tuple[Provenance, ...]:
    try:
        return tuple(Provenance(**each) for each in values)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"This is not a report: its provenance is malformed: {error}.", where=where
        ) from error


def _first(name: str, things: Iterable[_Named], kind: str) -> _Named:
    shown: dict[str, _Named] = {}
    registered: dict[str, _Named] = {}
    of_task: dict[str, _Named] = {}
    for thing in things:
        shown.setdefault(thing.name, thing)
        registered.setdefault(thing.metric, thing)
        if not isinstance(thing, Change) and thing.subject is not None:
            of_task.setdefault(thing.subject.task, thing)
    found = of_task | registered | shown
    if not name or name not in found:
        raise UserError(f"The report has no {kind} named {name!r}.", hint=nearest(name, shown))
    return found[name]


def _check_schema(record: object, where: object) -> None:
    if not isinstance(record, Mapping) or not isinstance(record.get("sections"), list):
        raise DataError("This is not a report: it has no sections.", where=where)
    schema = record.get("schema")
    if schema == SCHEMA:
        return
    name, _, version = str(schema).partition("/")
    ours = int(SCHEMA.partition("/")[2])
    if name == SCHEMA.partition("/")[0] and version.isdecimal() and int(version) > ours:
        raise DataError(
            f"The report has schema {schema!r}; this nbllm reads {SCHEMA!r}.",
            where=where,
            hint="A newer nbllm wrote it: update nbllm to read it.",
        )
    raise DataError(
        f"This is not a report that nbllm can read: its schema is {schema!r}, not {SCHEMA!r}.", where=where
    )


@exporters.register(".json")
def _json(report: Report) -> str:
    text = json.dumps(report.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # What a model wrote may hold half a surrogate pair, which UTF-8 cannot say but a JSON escape can.
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)


exporters.register(".html")(to_page)
exporters.register(".md")(to_markdown)
exporters.register(".pdf")(to_pdf)
exporters.register(".tex")(to_latex)
exporters.register(".csv")(to_csv)
exporters.register(".parquet")(to_parquet)
