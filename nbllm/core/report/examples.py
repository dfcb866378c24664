"""The browser of a report's examples: what a saved page and the notebook's panel show of every row."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbllm.core.report.sections import Comparisons, Rows
from nbllm.core.report.values import Value
from nbllm.core.terminal import json_only

if TYPE_CHECKING:
    from nbllm.core.report.report import Report

MOST_BYTES = 12_000_000  # of the examples in a page
_CHARACTERS = (2000, 600, 200, 80, 30)  # of a text, the first with which the page is small enough
_DIGITS = 5  # of a number
_UNSAFE = re.compile("[<\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

EXAMPLES_CSS = """
.nbllm-controls { display: flex; flex-wrap: wrap; gap: .5em; align-items: center; margin: .6em 0; }
.nbllm-controls select { max-width: 100%; }
.nbllm-controls select, .nbllm-controls input, .nbllm-controls button { font: inherit; font-size: .92em;
  color: inherit; background: var(--nbllm-raised); border: 1px solid var(--nbllm-line); border-radius: 6px;
  padding: .25em .6em; }
.nbllm-controls button:disabled { opacity: .45; }
.nbllm-controls [hidden] { display: none; }
.nbllm table.nbllm-examples { font-size: .88em; width: 100%; }
.nbllm.nbllm.nbllm .nbllm-examples :is(td, th) { max-width: 26em; overflow-wrap: anywhere; padding-right: .7em; }
.nbllm.nbllm.nbllm .nbllm-examples td.number { white-space: nowrap; }
.nbllm.nbllm.nbllm .nbllm-examples td.text { min-width: 9em; }
.nbllm-examples button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  white-space: nowrap; }
.nbllm-examples thead button { font-weight: 600; }
.nbllm-examples dl { display: grid; grid-template-columns: minmax(6em, max-content) 1fr; gap: .3em 1em; margin: 0;
  padding: .4em .6em; background: var(--nbllm-raised); border-radius: 6px; }
.nbllm-examples dt { color: var(--nbllm-muted); }
.nbllm-examples dd { white-space: pre-wrap; overflow-wrap: anywhere; }
.nbllm-examples dd ol { margin: 0; padding-left: 1.6em; white-space: pre-wrap; }
.nbllm.nbllm.nbllm .nbllm-detail > td { max-width: none; }
@media screen and (max-width: 600px) {
  .nbllm.nbllm.nbllm .nbllm-report table.nbllm-examples { display: table; }
  .nbllm.nbllm.nbllm .nbllm-report .nbllm-examples thead { display: table-header-group; }
  .nbllm.nbllm.nbllm .nbllm-report .nbllm-examples tbody { display: table-row-group; }
  .nbllm.nbllm.nbllm .nbllm-report .nbllm-examples tr { display: table-row; }
  .nbllm.nbllm.nbllm .nbllm-report .nbllm-examples :is(td, th) { display: table-cell; text-align: left; }
  .nbllm-examples dl { grid-template-columns: 1fr; }
}
@media print { .nbllm-browser { display: none; } }
"""


@functools.cache
def examples_script() -> str:
    """Return the JavaScript that defines `browse(host, data)`."""
    return (Path(__file__).parent / "examples.js").read_text(encoding="utf-8")


def examples_json(report: Report, most: int = MOST_BYTES) -> bytes:
    """Return the rows of all examples as compact JSON in UTF-8, for `browse`; empty where there are none.

    Args:
        report: The report; its JSON has every text whole.
        most: Bytes; where the rows are more, long texts are cut.
    """
    sections = [section for section in report.sections if isinstance(section, Rows) and len(section)]
    if not sections:
        return b""
    for characters in _CHARACTERS:
        tables = _tables(sections, report, characters)
        text = json.dumps(json_only({"tables": tables}), ensure_ascii=False, separators=(",", ":"))
        data = text.encode()
        if len(data) <= most:
            break
    return _escaped(data.decode()).encode()


def _escaped(text: str) -> str:
    """Return JSON that cannot end the element of a page that holds it, and hides nothing from who reads the file."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _tables(sections: Sequence[Rows], report: Report, characters: int) -> list[dict[str, Any]]:
    flips = {
        (each.subject, model): each.flips
        for section in report.sections
        if isinstance(section, Comparisons)
        for each in section.comparisons
        for model in each.models
    }
    seen: dict[Any, tuple[int, int]] = {}
    tables = []
    for number, section in enumerate(sections):
        columns = []
        for place, (name, values) in enumerate(section.columns.items()):
            same = seen.setdefault(values, (number, place))
            grouped = name == section.cluster
            column = {"same": same} if same != (number, place) else _column(values, characters, grouped)
            columns.append({"name": name, **column})
        title = section.subject.name(section.subject.task)
        tables.append(
            {
                "title": f"{title}, {section.model}" if section.model else title,
                "unit": section.unit,
                "columns": columns,
                "cluster": section.cluster,
                "flips": flips.get((section.subject, section.model), ()),
            }
        )
    return tables


def _column(values: Sequence[Value], characters: int, grouped: bool) -> dict[str, Any]:
    """Return values as JSON; of groups, or where few different texts are repeated, those and indices of them."""
    short = [_shortened(value, characters) for value in values]
    levels: dict[tuple[type, Any], int] = {}
    codes = [levels.setdefault((type(value), value), len(levels)) for value in short]
    texts = any(isinstance(value, str) for value in short)
    if grouped or (texts and 4 * len(levels) <= len(short)):
        return {"levels": [value for _, value in levels], "values": codes}
    return {"values": short}


def _shortened(value: Value, characters: int) -> Value:
    if isinstance(value, tuple):
        parts = (_shortened(each, characters) for each in value)
        return tuple(part for part in parts if not isinstance(part, tuple))
    if isinstance(value, str) and len(value) > characters:
        return f"{value[: characters - 1]}…"
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
