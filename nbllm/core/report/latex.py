"""A report as a LaTeX document whose tables (booktabs) can be copied into a paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from nbllm.core.html import is_numeric
from nbllm.core.quantities import column, iso_minute, number
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

_WIDE = 36  # characters from which a column has lines of its own
_GAP = "--"
_PREAMBLE = r"""\documentclass[11pt]{article}
\usepackage[margin=2.5cm]{geometry}
\usepackage{iftex}
\ifPDFTeX
  \usepackage[T1]{fontenc}
\else
  \usepackage{fontspec} % XeLaTeX and LuaLaTeX show text in any script that their font has
\fi
\usepackage{array,booktabs,caption,longtable,textcomp}
\setlength{\emergencystretch}{3em}
"""
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    '"': r"\textquotedbl{}",
    "-": "-{}",  # no ligatures: two hyphens stay two
    "[": "{[}",  # after a line's end, a bracket would be its argument
    "]": "{]}",
    "*": "{*}",
}
_ESCAPES = str.maketrans(_SPECIAL)


def to_latex(report: Report) -> str:
    """Return a report as a LaTeX document; any engine compiles it, XeLaTeX and LuaLaTeX show more scripts."""
    parts = [
        _PREAMBLE,
        f"\\title{{{_inline(report.title)}}}\n\\date{{{_inline(iso_minute(report.created))}}}\n\\author{{}}",
        "\\begin{document}\n\\maketitle",
    ]
    for section in report.sections:
        if section.title:
            parts.append(f"\\section*{{{_inline(section.title)}}}")
        if section.note:
            parts.append(_prose(section.note))
        parts.append(_RENDER[section.kind](section))
    parts.append(f"\\bigskip\\noindent Made with {_inline(report.generator)}.\n\n\\end{{document}}")
    return "\n\n".join(part for part in parts if part) + "\n"


def _inline(text: object) -> str:
    """Return text on one line in which nothing is a command."""
    return " ".join(visible(text).split()).translate(_ESCAPES)


def _prose(text: str) -> str:
    blocks = [block.strip() for block in visible(text).split("\n\n")]
    return "\n\n".join("\n".join(map(_inline, block.split("\n"))) for block in blocks if block)


def latex_table(rows: Sequence[Sequence[Cell]], header: Sequence[object], caption: str = "") -> str:
    """Return a table by the rules of booktabs; columns of numbers stand right, long texts in lines."""
    columns = [[row[i] for row in rows] for i in range(len(header))]
    numeric = [is_numeric(values) for values in columns]
    shown = [
        column([value for value in values if not isinstance(value, str)], _GAP)
        if flag
        else [*map(_cell, values)]
        for values, flag in zip(columns, numeric, strict=True)
    ]
    wide = [
        not flag and max([0, *map(len, cells)]) > _WIDE for cells, flag in zip(shown, numeric, strict=True)
    ]
    width = 0.8 / max(1, sum(wide)) * (0.6 if sum(wide) < len(header) else 1)
    kinds = "".join(
        "r" if right else f">{{\\raggedright\\arraybackslash}}p{{{width:.2f}\\linewidth}}" if long else "l"
        for right, long in zip(numeric, wide, strict=True)
    )
    head = " & ".join(_inline(name) for name in header)
    body = "\n".join(f"{' & '.join(cells)} \\\\" for cells in zip(*shown, strict=True))
    top = f"\\caption*{{{_inline(caption)}}}\\\\\n" if caption else ""
    return (
        f"\\begin{{longtable}}{{@{{}}{kinds}@{{}}}}\n{top}\\toprule\n{head} \\\\\n\\midrule\n\\endhead\n"
        f"{body}\n\\bottomrule\n\\end{{longtable}}"
    )


def _cell(value: Cell) -> str:
    if value is None:
        return _GAP
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number(value)
    return _inline(value)


def _text(section: Text) -> str:
    return _prose(section.text)


def _table(section: Table) -> str:
    return latex_table(section.rows, section.header, section.caption or section.folded)


def _measurements(section: Measurements) -> str:
    rows = [(m.name, m.value_text, m.unit, m.interval_text, m.note) for m in section.measurements]
    header = ("measure", "value", "unit", "interval", "how")
    keep = [i for i in range(5) if i < 2 or any(row[i] for row in rows)]
    signed = [] if section.prominent else [m for m in section.measurements if m.signature]
    comments = "".join(f"\n% {_comment(m.name)}: {_comment(m.signature)}" for m in signed)
    return latex_table([[row[i] for i in keep] for row in rows], [header[i] for i in keep]) + comments


def _comment(text: str) -> str:
    return " ".join(visible(text).split())


def _changes(section: Changes) -> str:
    return latex_table(
        [(each.name, *each.texts) for each in section.changes], section.header, section.caption
    )


def _comparisons(section: Comparisons) -> str:
    note = [_prose(section.caption)] if section.caption else []
    return "\n\n".join(
        [*note, *(latex_table(rows, header) for header, rows in (*section.tables(), *section.details()))]
    )


def _rows(section: Rows) -> str:
    return f"The figures above are computed from {len(section):,} {_inline(section.unit)}."


def _chart(section: Chart) -> str:
    rows = []
    for line in section.lines:
        values = [y for y in line.y if y is not None]
        if values:
            rows.append((line.name, values[0], min(values), max(values), values[-1]))
    caption = section.caption or f"{section.y_label} over {section.x_label}"
    return latex_table(rows, ("line", "first", "lowest", "highest", "last"), caption) if rows else ""


def _bars(section: Bars) -> str:
    header, rows = section.table()
    return latex_table(rows, header, section.caption)


def _samples(section: Samples) -> str:
    return "\n\n".join(map(_sample, section.samples))


def _sample(sample: Sample) -> str:
    label = f"{_inline(sample.label)}: " if sample.label else ""
    prompt = f"\\textbf{{{_inline(sample.prompt)}}} " if sample.prompt else ""
    return f"\\begin{{quote}}\n{label}{prompt}{_inline(sample.text)}\n\\end{{quote}}"


def _key_values(section: KeyValues) -> str:
    return latex_table(section.entries, ("name", "value"))


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
