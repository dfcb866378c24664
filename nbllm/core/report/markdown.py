"""A report as GitHub's Markdown: tables whose columns align in the source too, charts as lines of blocks."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nbllm.core.chart import sparkline
from nbllm.core.html import is_numeric
from nbllm.core.quantities import column, iso_minute, number
from nbllm.core.report.figures import Measurement
from nbllm.core.report.sections import (
    Bars,
    Changes,
    Chart,
    Comparisons,
    KeyValues,
    Measurements,
    Rows,
    Sample,
    Samples,
    Table,
    Text,
)
from nbllm.core.report.values import Cell
from nbllm.core.terminal import visible

if TYPE_CHECKING:
    from nbllm.core.report.report import Report

_GAP = "\N{EN DASH}"
_SPECIAL = re.compile(r"([\\`*_\[\]|~$])")
_AT_LINE_START = re.compile(r"^(\s*)([#+=-]|\d+[.)])", re.MULTILINE)


def to_markdown(report: Report) -> str:
    """Return a report as Markdown."""
    parts = [f"# {_inline(report.title)}", _inline(iso_minute(report.created))]
    for section in report.sections:
        if section.title:
            parts.append(f"## {_inline(section.title)}")
        if section.note:
            parts.append(_prose(section.note))
        parts.append(_RENDER[section.kind](section))
    parts.append(f"---\n\nMade with {_inline(report.generator)}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(rows: Sequence[Sequence[Cell]], header: Sequence[str]) -> str:
    """Return a table; every column is as wide as its widest cell, and columns of numbers stand right."""
    right = [is_numeric([row[i] for row in rows]) for i in range(len(header))]
    columns = [_column([row[i] for row in rows], right[i]) for i in range(len(header))]
    cells = [[_inline(name) for name in header], *(list(row) for row in zip(*columns, strict=True))]
    widths = [max(3, *(_width(row[i]) for row in cells)) for i in range(len(header))]
    lines = [_row([_pad(*c) for c in zip(row, widths, right, strict=True)]) for row in cells]
    rule = [
        "-" * (width - 1) + ":" if flag else "-" * width for width, flag in zip(widths, right, strict=True)
    ]
    return "\n".join([lines[0], _row(rule), *lines[1:]])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _column(values: Sequence[Any], numeric: bool) -> list[str]:
    return column(values, _GAP) if numeric else [_cell(value) for value in values]


def _cell(value: Cell) -> str:
    if value is None:
        return _GAP
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number(value)
    return _inline(str(value))


def _inline(text: str) -> str:
    """Return text on one line in which nothing is markup: neither Markdown's nor HTML's."""
    return _escape(" ".join(visible(text).split("\n")))


def _prose(text: str) -> str:
    """Return paragraphs in which nothing is markup; those of more lines keep their line ends."""
    blocks = [block.strip() for block in visible(text).split("\n\n")]
    return "\n\n".join(_AT_LINE_START.sub(_quote_start, _escape(block)) for block in blocks if block)


def _escape(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", text)


def _quote_start(found: re.Match[str]) -> str:
    """Keep a line from becoming a heading, a list or a rule: "1." is escaped before its point."""
    sign = found[2]
    return f"{found[1]}{sign[:-1]}\\{sign[-1]}"


def _width(text: str) -> int:
    """Return how many columns a fixed-width font needs."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def _pad(text: str, width: int, right: bool) -> str:
    gap = " " * (width - _width(text))
    return gap + text if right else text + gap


def _fence(text: str) -> str:
    """Return text as a code block, whose fence is longer than any run of backticks inside."""
    text = visible(text)
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _text(section: Text) -> str:
    return _prose(section.text)


def _table(section: Table) -> str:
    above = section.caption or section.folded
    caption = f"{_inline(above)}\n\n" if above else ""
    return caption + markdown_table(section.rows, section.header)


def _measurements(section: Measurements) -> str:
    rows = [(m.name, _with_unit(m), m.interval_text, m.note) for m in section.measurements]
    header = ("measure", "value", "interval", "how")
    keep = [i for i in range(4) if i < 2 or any(row[i] for row in rows)]
    shown = markdown_table([[row[i] for i in keep] for row in rows], [header[i] for i in keep])
    signed = [] if section.prominent else [(m.name, m.signature) for m in section.measurements if m.signature]
    return shown + (f"\n\n{markdown_table(signed, ('measure', 'signature'))}" if signed else "")


def _changes(section: Changes) -> str:
    caption = f"{_inline(section.caption)}\n\n" if section.caption else ""
    rows = [(change.name, *change.texts) for change in section.changes]
    return caption + markdown_table(rows, section.header)


def _comparisons(section: Comparisons) -> str:
    caption = [_inline(section.caption)] if section.caption else []
    return "\n\n".join(
        [
            *caption,
            *(markdown_table(rows, header) for header, rows in (*section.tables(), *section.details())),
        ]
    )


def _rows(section: Rows) -> str:
    rows = section.first_rows()
    if not rows:
        return ""
    head = f"The first {len(rows):,} of {len(section):,} {section.unit}:"
    return f"{_inline(head)}\n\n{markdown_table(rows, section.shown_columns)}"


def _with_unit(measured: Measurement) -> str:
    return f"{measured.value_text} {measured.unit}".strip()


def _chart(section: Chart) -> str:
    rows = []
    for line in section.lines:
        values = [y for y in line.y if y is not None]
        if values:
            curve = sparkline([float("nan") if y is None else y for y in line.y], width=32)
            rows.append((line.name, values[0], min(values), values[-1], curve))
    head = f"{section.y_label} over {section.x_label}"
    caption = _inline(f"{section.caption} ({head})" if section.caption else head)
    if not rows:
        return f"{caption}: no data yet."
    drawn = markdown_table(rows, ("line", "first", "lowest", "last", "curve"))
    events = "; ".join(f"{event.label} at {number(event.x)}" for event in section.events)
    return f"{caption}\n\n{drawn}" + (f"\n\nMarked: {_inline(events)}." if events else "")


def _bars(section: Bars) -> str:
    header, rows = section.table()
    caption = f"{_inline(section.caption)}\n\n" if section.caption else ""
    return caption + markdown_table(rows, header)


def _samples(section: Samples) -> str:
    return "\n\n".join(map(_sample, section.samples))


def _sample(sample: Sample) -> str:
    label = f"{_inline(sample.label)}:\n\n" if sample.label else ""
    return label + _fence(sample.prompt + sample.text)


def _key_values(section: KeyValues) -> str:
    return markdown_table(section.entries, ("name", "value"))


_RENDER: dict[str, Callable[[Any], str]] = {
    Text.kind: _text,
    Table.kind: _table,
    Measurements.kind: _measurements,
    Changes.kind: _changes,
    Comparisons.kind: _comparisons,
    Rows.kind: _rows,
    Chart.kind: _chart,
    Bars.kind: _bars,
    Samples.kind: _samples,
    KeyValues.kind: _key_values,
}
