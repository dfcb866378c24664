"""A report as HTML: a page to hand in or print, or a fragment for a notebook cell."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from nbllm.core.bar_chart import NamedBar, bar_chart
from nbllm.core.chart import Mark, Series, line_chart
from nbllm.core.html import Raw, escape, fragment, key_values, page, table
from nbllm.core.quantities import fixed, iso_minute
from nbllm.core.report.examples import EXAMPLES_CSS, examples_json, examples_script
from nbllm.core.report.figures import Change, Comparison, Measurement
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

if TYPE_CHECKING:
    from nbllm.core.report.report import Report

REPORT_CSS = """
.nbllm-report header { border-bottom: 2px solid var(--nbllm-line); margin-bottom: 1.6em;
  padding-bottom: .8em; }
.nbllm-report header p { margin: .3em 0 0; }
.nbllm-report footer { border-top: 1px solid var(--nbllm-line); margin-top: 2.5em; padding-top: .6em;
  font-size: .85em; }
.nbllm-report .figures { display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fit, minmax(220px, 1fr));  margin: 1em 0 1.4em; padding: 0; }
.nbllm-report .figures > div { border: 1px solid var(--nbllm-line); border-radius: 8px; padding: .7em .9em;
  background: var(--nbllm-raised); break-inside: avoid; }
.nbllm-report .figures dt { font-size: .88em; color: var(--nbllm-muted); }
.nbllm-report .figures dd { margin: 0; }
.nbllm-report .figures .value { font-size: 1.55em; font-weight: 600; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.nbllm-report .figures .value small { font-size: .5em; font-weight: 400; color: var(--nbllm-muted);
  margin-left: .4em; }
.nbllm-report .figures .rest { font-size: .82em; color: var(--nbllm-muted); }
.nbllm-report figure { margin: 1em 0 1.4em; }
.nbllm-report figcaption, .nbllm-report caption { font-size: .88em; color: var(--nbllm-muted); }
.nbllm-report figcaption { margin-top: .4em; }
.nbllm-report .matrices { display: flex; flex-wrap: wrap; gap: 0 3em; }
.nbllm-report .matrices > * { flex: 0 1 auto; max-width: 24em; }
.nbllm-report .sample { margin: 1em 0; break-inside: avoid; }
.nbllm-report .narrow { display: none; }
@media screen and (max-width: 600px) {
  .nbllm-report .wide { display: none; }
  .nbllm-report .narrow { display: block; }
  .nbllm-report table, .nbllm-report tbody, .nbllm-report tr, .nbllm-report caption { display: block; width: 100%; }
  .nbllm-report thead { display: none; }
  .nbllm-report tr { border-bottom: 1px solid var(--nbllm-line); padding: .4em 0; }
  .nbllm.nbllm.nbllm .nbllm-report :is(td, th) { display: flex; justify-content: space-between; gap: 1em; border: 0;
    padding: .1em 0; white-space: normal; overflow-wrap: anywhere; text-align: right; }
  .nbllm.nbllm.nbllm .nbllm-report :is(td, th):empty { display: none; }
  .nbllm.nbllm.nbllm .nbllm-report .pairs :is(td, th) { text-align: left; }
  .nbllm-report td[data-label]::before { content: attr(data-label); color: var(--nbllm-muted); text-align: left;
    flex: none; max-width: 50%; }
  .nbllm.nbllm.nbllm .nbllm-report td[data-label=""] { justify-content: flex-start; gap: 0; font-weight: 600;
    text-align: left; }
  .nbllm.nbllm.nbllm .nbllm-report .unbroken { white-space: normal; }
}
.nbllm-report .sample > p { font-size: .88em; color: var(--nbllm-muted); margin: 0; }
"""

_START = """
browse(document.getElementById("nbllm-examples"), JSON.parse(document.getElementById("nbllm-data").textContent));
"""


def to_page(report: Report) -> str:
    """Return a report as a whole HTML page that needs nothing else.

    The rows of the examples are in it as JSON, of which a script shows one page at a time.
    """
    data = examples_json(report)
    body = f'<div class="nbllm-report">{_body(report, browsed=bool(data))}</div>'
    if not data:
        return page(report.title, body, css=REPORT_CSS)
    body += f'<script type="application/json" id="nbllm-data">{data.decode()}</script>'
    return page(report.title, body, css=REPORT_CSS + EXAMPLES_CSS, script=examples_script() + _START)


def to_fragment(report: Report) -> str:
    """Return a report as HTML for a notebook cell."""
    return fragment(f'<style>{REPORT_CSS}</style><div class="nbllm-report">{_body(report)}</div>')


def _body(report: Report, *, browsed: bool = False) -> str:
    count = _Counter()
    count.browsed = browsed
    made = escape(iso_minute(report.created))
    parts = [f'<header><h1>{escape(report.title)}</h1><p class="muted">{made}</p></header>']
    for section in report.sections:
        heading = f"<h2>{escape(section.title)}</h2>" if section.title else ""
        body = _paragraphs(section.note) + _RENDER[section.kind](section, count)
        parts.append(f"<section>{heading}{body}</section>")
    if browsed:
        parts.append(
            '<section class="nbllm-browser"><h2 id="examples">Examples</h2><div id="nbllm-examples">'
            "<p>The examples are shown by a script, which does not run here.</p></div></section>"
        )
    parts.append(f'<footer class="muted">Made with {escape(report.generator)}.</footer>')
    return "\n".join(parts)


class _Counter:
    """Numbers the figures and tables of one report."""

    browsed = False  # whether the page has a browser of all examples

    def __init__(self) -> None:
        self._counts: dict[str, Iterator[int]] = {}

    def caption(self, kind: str, text: str) -> str:
        number = next(self._counts.setdefault(kind, itertools.count(1)))
        return f"{kind} {number}. {text}" if text else f"{kind} {number}"


def _paragraphs(text: str) -> str:
    blocks = [block.strip() for block in text.split("\n\n")]
    return "".join(f"<p>{escape(block)}</p>" for block in blocks if block)


def _text(section: Text, count: _Counter) -> str:
    return _paragraphs(section.text)


def _table(section: Table, count: _Counter) -> str:
    caption = count.caption("Table", section.caption) if section.caption else None
    shown = table(section.rows, section.header, caption=caption)
    return _folded(section.folded, shown) if section.folded else shown


def _folded(summary: str, body: str) -> str:
    return f'<details class="rows"><summary>{escape(summary)}</summary>{body}</details>'


def _comparisons(section: Comparisons, count: _Counter) -> str:
    matrices = "".join(_matrix(*each) for each in section.matrices())
    parts = [f'<div class="matrices">{matrices}</div>'] if matrices else []
    for header, rows in section.tables():
        parts.append(table([_unbroken_after_first(row) for row in rows], header))
    tests = "".join(
        table([_unbroken_after_first(row) for row in rows], header) for header, rows in section.details()
    )
    parts.append(_folded("Tests, effect sizes and examples needed", _paragraphs(section.caption) + tests))
    return "".join(parts)


def _unbroken_after_first(row: tuple[str, ...]) -> list[str]:
    return [_unbroken(cell) if i else cell for i, cell in enumerate(row)]


def _matrix(name: str, models: tuple[str, ...], cells: list[list[Comparison | None]]) -> str:
    """Return every model against every other: the row's figure minus the column's, coloured where it is decided."""
    rows = []
    for model, found in zip(models, cells, strict=True):
        shown: list[object] = [model]
        for each in found:
            if each is None:
                shown.append("")
                continue
            sign = -1 if each.models[0] == model else 1
            kind = "" if not each.winner else "good" if each.winner == model else "bad"
            mark = {"good": " ✓", "bad": " ✗", "": ""}[kind]
            text = fixed(sign * each.difference, like=max(each.values, key=abs))
            shown.append(_right(("+" if sign * each.difference > 0 else "") + text + mark, kind))
        rows.append(shown)
    caption = f"{name}: the model of the row minus that of the column; ✓ and ✗ where it is better or worse."
    return table(rows, ("", *map(_right, models)), caption=caption, row_headers=True)


def _measurements(section: Measurements, count: _Counter) -> str:
    if section.prominent:
        return f'<dl class="figures">{"".join(map(_card, section.measurements))}</dl>'
    rows = [
        (each.name, _right(each.value_text), each.unit, _unbroken(each.interval_text), each.note)
        for each in section.measurements
    ]
    header = ("measure", _right("value"), "unit", "interval", "how")
    keep = [i for i in range(5) if i < 2 or any(row[i] for row in rows)]
    shown = table([[row[i] for i in keep] for row in rows], [header[i] for i in keep])
    signed = [(each.name, each.signature) for each in section.measurements if each.signature]
    return shown + (_folded("Signatures", key_values(signed)) if signed else "")


def _changes(section: Changes, count: _Counter) -> str:
    rows = [_change(change) for change in section.changes]
    name, *numeric, interval = section.header
    caption = count.caption("Table", section.caption) if section.caption else None
    return table(rows, (name, *map(_right, numeric), interval), caption=caption)


def _change(change: Change) -> tuple[object, ...]:
    before, after, difference, interval = change.texts
    return change.name, _right(before), _right(after), _right(difference, change.verdict), _unbroken(interval)


def _rows(section: Rows, count: _Counter) -> str:
    rows = section.first_rows()
    if not rows:
        return ""
    num_rows = len(section)
    what = f"{num_rows:,} {section.unit}"
    where = "all are under Examples" if count.browsed else "the report's JSON has all"
    if len(rows) < num_rows:
        what = f"The first {len(rows):,} of {what}; {where}"
    shown = table(rows, section.shown_columns)
    return _folded(what, shown)


def _right(text: str, kind: str = "") -> Raw:
    return Raw(f'<div class="number {kind}">{escape(text)}</div>')


def _unbroken(text: str) -> Raw:
    return Raw(f'<span class="unbroken">{escape(text)}</span>' if text else "")


def _card(measured: Measurement) -> str:
    unit = f"<small>{escape(measured.unit)}</small>" if measured.unit else ""
    interval = f"interval {measured.interval_text}" if measured.interval else ""
    rest = "".join(f'<div class="rest">{escape(text)}</div>' for text in (interval, measured.note) if text)
    value = f'<div class="value">{escape(measured.value_text)}{unit}</div>'
    return f"<div><dt>{escape(measured.name)}</dt><dd>{value}{rest}</dd></div>"


def _chart(section: Chart, count: _Counter) -> str:
    series = [
        Series(line.name, line.x, [float("nan") if y is None else y for y in line.y])
        for line in section.lines
    ]
    marks = [Mark(event.x, event.label) for event in section.events]

    def drawn(width: int, height: int) -> str:
        return line_chart(
            series,
            x_label=section.x_label,
            y_label=section.y_label,
            marks=marks,
            width=width,
            height=height,
            log=section.log,
        )

    # Shrunk to a phone's width the letters of the wide chart could not be read: it has a chart of its own.
    charts = (
        f'<div class="wide">{drawn(860, 180 if section.minor else 320)}</div>'
        f'<div class="narrow" hidden>{drawn(360, 180 if section.minor else 260)}</div>'
    )
    caption = escape(count.caption("Figure", section.caption))
    return f"<figure>{charts}<figcaption>{caption}</figcaption></figure>"


def _bars(section: Bars, count: _Counter) -> str:
    if not section.bars:
        return ""
    bars = [
        NamedBar(bar.name, bar.value, bar.interval, f"{bar.count:,} {section.unit}") for bar in section.bars
    ]

    def drawn(width: int) -> Raw:
        return bar_chart(bars, x_label=section.x_label, marked=section.marked, width=width)

    charts = f'<div class="wide">{drawn(860)}</div><div class="narrow" hidden>{drawn(360)}</div>'
    header, rows = section.table()
    caption = escape(count.caption("Figure", section.caption))
    shown = _folded("The same as a table", table(rows, header))
    return f"<figure>{charts}<figcaption>{caption}</figcaption></figure>{shown}"


def _samples(section: Samples, count: _Counter) -> str:
    return "".join(map(_sample, section.samples))


def _sample(sample: Sample) -> str:
    label = f"<p>{escape(sample.label)}</p>" if sample.label else ""
    prompt = f"<b>{escape(sample.prompt)}</b>" if sample.prompt else ""
    return f'<div class="sample">{label}<pre>{prompt}{escape(sample.text)}</pre></div>'


def _key_values(section: KeyValues, count: _Counter) -> str:
    return key_values(section.entries)


_RENDER: dict[str, Callable[[Any, _Counter], str]] = {
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
