"""Line charts as strings: inline SVG for HTML, and a line of block characters for text.

They need neither script nor style sheet: colours are theme variables with a fallback, the rest is `currentColor`, so a
chart is legible in light and dark themes, in a notebook, in nbconvert's output and on paper.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nbllm.core.downsample import downsample
from nbllm.core.html import Raw, escape
from nbllm.core.quantities import number

# Okabe and Ito's colours, which colour-blind people can tell apart; the theme lightens or darkens them.
# Source: Okabe and Ito 2008, "Color Universal Design".
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b07d00", "#56b4e9")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "12 4")  # so that series differ in more than colour
_FONT = 11.5
_CHARACTER = 6.3  # mean width of a character at that size, in pixels
_ROW = 16  # pixels between rows of the legend
_BLOCKS = "▁▂▃▄▅▆▇█"


@dataclasses.dataclass(frozen=True)
class Series:
    """One named line; points that are not finite (and on a log scale not positive) leave a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclasses.dataclass(frozen=True)
class Mark:
    """A labelled vertical line at `x`, for something that happened there."""

    x: float
    label: str


@dataclasses.dataclass(frozen=True)
class _Frame:
    """Where data coordinates lie on the paper, in pixels."""

    left: float
    right: float
    top: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]  # of log10(y) on a log scale
    log: bool

    def px(self, x: Any) -> Any:
        low, high = self.x_range
        return self.left + (x - low) / (high - low) * (self.right - self.left)

    def py(self, y: Any) -> Any:
        low, high = self.y_range
        height = np.log10(y) if self.log else y
        return self.bottom - (height - low) / (high - low) * (self.bottom - self.top)


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    marks: Sequence[Mark] = (),
    width: int = 720,
    height: int = 280,
    log: bool = False,
) -> Raw:
    """Return an inline SVG of the series over a common x axis.

    Args:
        series: The lines; of many points, the first, last, lowest and highest in each column of pixels are drawn, so
            that no spike is lost.
        x_label: What the x axis counts.
        y_label: What the y axis measures, with its unit.
        marks: Vertical lines with a label; labels that would overlap go to the next of three rows, or
            are left to the line's tooltip.
        width: In pixels; the drawing shrinks with its container.
        height: In pixels; more where the legend takes more than one row.
        log: Whether the y axis is logarithmic.
    """
    data = [(*_finite(s.x, s.y, log), s.name) for s in series]
    frame = _frame(data, [mark.x for mark in marks], (width, height), log)
    entries = _place_entries([s.name for s in series], frame) if len(series) > 1 else []
    more = _ROW * max((entry.row for entry in entries), default=0)
    legend = 20 + more if entries else 0
    height, frame = height + more, dataclasses.replace(frame, bottom=frame.bottom + more)
    labels = _place_labels(marks, frame)
    num_rows = max((label.row for label in labels if label), default=-1) + 1
    frame = dataclasses.replace(frame, top=10 + legend + 15 * num_rows)
    parts = [
        _grid(frame),
        *(_mark(mark, label, frame, 10 + legend) for mark, label in zip(marks, labels, strict=True)),
        *(_path(x, y, name, i, frame) for i, (x, y, name) in enumerate(data)),
        _text(f"{escape(x_label)}", (frame.left + frame.right) / 2, height - 4, "middle"),
        _text(f"{escape(y_label)}", 12, (frame.top + frame.bottom) / 2, "middle", turn=True),
        _legend(entries),
    ]
    if not any(len(x) for x, _, _ in data):
        parts.append(
            _text("no data yet", (frame.left + frame.right) / 2, (frame.top + frame.bottom) / 2, "middle")
        )
    names = escape(", ".join(s.name for s in series))
    return Raw(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{escape(y_label)} over {escape(x_label)}: {names}" '
        f'font-family="system-ui, sans-serif" font-size="{_FONT}" style="max-width:100%;height:auto">'
        f"{''.join(parts)}</svg>"
    )


def sparkline(y: Sequence[float], *, width: int = 40) -> str:
    """Return a curve in block characters, at most `width` of them; a gap in the data is a space.

    >>> sparkline([4, 3, 2, 1])
    '█▆▃▁'
    """
    values = np.asarray(y, dtype=float)
    columns = np.array_split(values, min(width, len(values))) if len(values) else []
    means = [float(c[np.isfinite(c)].mean()) if np.isfinite(c).any() else math.nan for c in columns]
    finite = [m for m in means if math.isfinite(m)]
    if not finite:
        return ""
    low, span = min(finite), (max(finite) - min(finite)) or 1.0
    return "".join(
        _BLOCKS[round((m - low) / span * (len(_BLOCKS) - 1))] if math.isfinite(m) else " " for m in means
    )


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return at most `most` round numbers within [low, high], their step 1, 2 or 5 times a power of ten."""
    if not high > low or most < 1:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20, 50):
        first = math.ceil(low / (step * factor) - 1e-9)
        last = math.floor(high / (step * factor) + 1e-9)
        if last - first + 1 <= most:
            return [round(k * step * factor, 12) + 0.0 for k in range(first, last + 1)]
    raise AssertionError("a step of 50 tenths always fits")


def _log_ticks(low: float, high: float) -> list[float]:
    """Return decades, with 2 and 5 between them where few decades are shown; bounds are log10."""
    factors = (1.0,) if high - low > 4 else (1.0, 2.0, 5.0)
    found = [f * 10.0**k for k in range(math.floor(low), math.ceil(high) + 1) for f in factors]
    inside = [value for value in found if low - 1e-9 <= math.log10(value) <= high + 1e-9]
    return inside if len(inside) > 1 else [v for v in ticks(10**low, 10**high, 5) if v > 0]


def _tick_label(value: float, all_values: Sequence[float]) -> str:
    largest = max(map(abs, all_values))
    if largest >= 1e6 or 0 < largest < 1e-3:
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")
    return number(value, 6).replace("-", "\N{MINUS SIGN}")


def _finite(x: Sequence[float], y: Sequence[float], log: bool) -> tuple[Any, Any]:
    """Return x and y as arrays, y set to NaN where nothing can be drawn, points without an x left out."""
    assert len(x) == len(y), "a series needs as many x as y"
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    xs, ys = xs[np.isfinite(xs)], ys[np.isfinite(xs)].copy()
    bad = ~np.isfinite(ys)
    if log:
        bad |= ~(np.nan_to_num(ys, nan=-1.0) > 0)
    ys[bad] = np.nan
    return xs, ys


def _frame(
    data: list[tuple[Any, Any, str]], mark_xs: list[float], paper: tuple[int, int], log: bool
) -> _Frame:
    xs = [float(v) for x, y, _ in data if len(x) for v in (x.min(), x.max())] + mark_xs
    ys = [float(v) for _, y, _ in data if np.isfinite(y).any() for v in (np.nanmin(y), np.nanmax(y))]
    x_low, x_high = (min(xs), max(xs)) if xs else (0.0, 1.0)
    y_low, y_high = (min(ys), max(ys)) if ys else ((0.1, 1.0) if log else (0.0, 1.0))
    if log:
        y_low, y_high = math.log10(y_low), math.log10(y_high)
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    pad = 0.04 * (y_high - y_low) or abs(y_high) * 0.1 or 0.5
    y_range = (y_low - pad, y_high + pad)
    values = _y_ticks(y_range, log, paper[1] - 46)
    left = 28 + _CHARACTER * max(len(_tick_label(v, values)) for v in values)
    return _Frame(left, paper[0] - 14, 10, paper[1] - 36, (x_low, x_high), y_range, log)


def _y_ticks(y_range: tuple[float, float], log: bool, pixels: float) -> list[float]:
    return _log_ticks(*y_range) if log else ticks(*y_range, max(2, int(pixels // 44)))


def _grid(frame: _Frame) -> str:
    parts = []
    y_values = _y_ticks(frame.y_range, frame.log, frame.bottom - frame.top)
    for value in y_values:
        y = frame.py(value)
        parts.append(_line(frame.left, y, frame.right, y, "var(--nbllm-line, #8886)"))
        parts.append(_text(_tick_label(value, y_values), frame.left - 7, y + 4, "end"))
    x_values = ticks(*frame.x_range, max(2, int((frame.right - frame.left) // 80)))
    for value in x_values:
        x = frame.px(value)
        parts.append(_line(x, frame.bottom, x, frame.bottom + 4, "currentColor"))
        parts.append(_text(_tick_label(value, x_values), x, frame.bottom + 17, "middle"))
    parts.append(_line(frame.left, frame.bottom, frame.right, frame.bottom, "currentColor"))
    return "".join(parts)


def _path(x: Any, y: Any, name: str, index: int, frame: _Frame) -> str:
    if not len(x):
        return ""
    with np.errstate(invalid="ignore", divide="ignore"):
        px, py = frame.px(x), frame.py(y)
        kept = downsample(py, 4 * int(frame.right - frame.left), px)  # a part is a column of pixels
        px, py = px[kept], py[kept]
    colour = _colour(index)
    shown = np.isfinite(py)
    if shown.sum() == 1:  # a line of one point has no length
        at = int(np.flatnonzero(shown)[0])
        dot = f'<circle cx="{px[at]:.1f}" cy="{py[at]:.1f}" r="3.5" fill="{colour}">'
        return f"{dot}<title>{escape(name)}</title></circle>"
    steps, pen_down = [], False
    for left, top, show in zip(px, py, shown, strict=True):
        if show:
            steps.append(f"{'L' if pen_down else 'M'}{left:.1f} {top:.1f}")
        pen_down = bool(show)
    dash = f' stroke-dasharray="{DASHES[index % len(DASHES)]}"' if index % len(DASHES) else ""
    return (
        f'<path d="{"".join(steps)}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-linejoin="round"'
        f' stroke-linecap="round"{dash}><title>{escape(name)}</title></path>'
    )


@dataclasses.dataclass(frozen=True)
class _Label:
    """Where a mark's label stands: its row from the top, and to which side of its line."""

    row: int
    anchor: str


def _place_labels(marks: Sequence[Mark], frame: _Frame) -> list[_Label | None]:
    """Return each mark's place in the first of three rows with room; `None` where there is none."""
    taken: list[list[tuple[float, float]]] = [[], [], []]
    places: list[_Label | None] = [None] * len(marks)
    for i in sorted(range(len(marks)), key=lambda i: marks[i].x):
        x, length = float(frame.px(marks[i].x)), _CHARACTER * len(marks[i].label) + 8
        anchor = "start" if x + length <= frame.right + 14 else "end"
        start, end = (x, x + length) if anchor == "start" else (x - length, x)
        for row, spans in enumerate(taken):
            if start >= 0 and all(end <= left or start >= right for left, right in spans):
                spans.append((start, end))
                places[i] = _Label(row, anchor)
                break
    return places


def _mark(mark: Mark, label: _Label | None, frame: _Frame, top: float) -> str:
    x = float(frame.px(mark.x))
    muted = "var(--nbllm-muted, #777)"
    line_top = frame.top if label is None else top + 15 * label.row
    parts = [_line(x, line_top, x, frame.bottom, muted, dash="3 3")]
    if label is not None:
        shift = 4 if label.anchor == "start" else -4
        parts.append(_text(escape(mark.label), x + shift, top + 15 * label.row + 9, label.anchor, muted))
    return f"<g><title>{escape(f'{mark.label} at {number(mark.x, 6)}')}</title>{''.join(parts)}</g>"


@dataclasses.dataclass(frozen=True)
class _Entry:
    """Where the name of a line stands in the legend."""

    name: str
    x: float
    row: int


def _place_entries(names: Sequence[str], frame: _Frame) -> list[_Entry]:
    """Place the legend's entries in as many rows as they need; a name that is wider than the chart is cut."""
    most = int((frame.right - frame.left - 28) / _CHARACTER)
    entries, x, row = [], frame.left, 0
    for name in names:
        shown = name if len(name) <= most else f"{name[: most - 1]}…"
        end = x + 28 + _CHARACTER * len(shown)
        if end > frame.right and x > frame.left:
            x, row = frame.left, row + 1
            end = x + 28 + _CHARACTER * len(shown)
        entries.append(_Entry(shown, x, row))
        x = end + 20
    return entries


def _legend(entries: Sequence[_Entry]) -> str:
    parts = []
    for i, entry in enumerate(entries):
        y = 12 + _ROW * entry.row
        parts.append(_line(entry.x, y, entry.x + 22, y, _colour(i), dash=DASHES[i % len(DASHES)], thick=2.2))
        parts.append(_text(escape(entry.name), entry.x + 28, y + 4, "start"))
    return "".join(parts)


def _colour(index: int) -> str:
    return f"var(--nbllm-series-{index % len(PALETTE) + 1}, {PALETTE[index % len(PALETTE)]})"


def _line(
    x1: float, y1: float, x2: float, y2: float, colour: str, *, dash: str = "", thick: float = 1
) -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{thick}"{dashed}/>'
    )


def _text(
    safe: str, x: float, y: float, anchor: str, colour: str = "currentColor", *, turn: bool = False
) -> str:
    turned = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turn else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{turned}>{safe}</text>'
