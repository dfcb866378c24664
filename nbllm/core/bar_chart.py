"""Bar charts with intervals, as inline SVG that is legible in light and dark themes and on paper."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nbllm.core.chart import ticks
from nbllm.core.html import Raw, escape
from nbllm.core.quantities import number

_ROW, _THICK, _FONT, _CHARACTER = 19, 11, 11.5, 6.3
_LONGEST = 30  # characters of a name
_VALUE = 46  # pixels for the value beside a bar


@dataclasses.dataclass(frozen=True)
class NamedBar:
    """One bar.

    Args:
        name: Beside it.
        value: Its length.
        interval: Lower and upper bound, drawn as a whisker.
        tooltip: What is said beside name and value: "40 questions".
    """

    name: str
    value: float
    interval: tuple[float, float] | None = None
    tooltip: str = ""


def bar_chart(
    bars: Sequence[NamedBar], *, x_label: str, marked: float | None = None, width: int = 720
) -> Raw:
    """Return an inline SVG of horizontal bars, in their order.

    Args:
        bars: At least one; values are not negative.
        x_label: What the bars measure.
        marked: A value at which a dashed line stands, as the level of chance.
        width: In pixels; the drawing shrinks with its container.
    """
    names = [bar.name if len(bar.name) <= _LONGEST else f"{bar.name[: _LONGEST - 1]}…" for bar in bars]
    left = 14 + _CHARACTER * max(map(len, names))
    right, top = width - _VALUE, 8
    bottom = top + _ROW * len(bars)
    most = max([bar.interval[1] if bar.interval else bar.value for bar in bars] + [marked or 0.0]) or 1.0
    most = 1.0 if 0.5 < most <= 1 else most

    def px(value: float) -> float:
        return left + value / most * (right - left)

    parts = []
    for tick in ticks(0, most, 5):
        x = px(tick)
        parts.append(_line(x, top, x, bottom, "var(--nbllm-line, #8886)"))
        parts.append(_text(number(tick), x, bottom + 14, "middle"))
    for i, (bar, name) in enumerate(zip(bars, names, strict=True)):
        middle = top + _ROW * (i + 0.5)
        said = f"{bar.name}: {number(bar.value)}"
        if bar.interval:
            said += f" ({number(bar.interval[0])} to {number(bar.interval[1])})"
        said += f", {bar.tooltip}" if bar.tooltip else ""
        rect = (
            f'<rect x="{left:.1f}" y="{middle - _THICK / 2:.1f}" width="{max(0.0, px(bar.value) - left):.1f}" '
            f'height="{_THICK}" rx="1.5" fill="var(--nbllm-series-1, #0072b2)" fill-opacity=".75"/>'
        )
        end = bar.value
        if bar.interval:
            low, high = bar.interval
            rect += _line(px(low), middle, px(high), middle, "currentColor", 1.4)
            rect += "".join(
                _line(px(x), middle - 3, px(x), middle + 3, "currentColor", 1.4) for x in (low, high)
            )
            end = max(end, high)
        label = _text(escape(name), left - 6, middle + 4, "end")
        value = _text(number(bar.value, 3), px(end) + 5, middle + 4, "start")
        parts.append(f"<g><title>{escape(said)}</title>{label}{rect}{value}</g>")
    if marked is not None:
        parts.append(_line(px(marked), top, px(marked), bottom, "currentColor", 1, dash="4 3"))
    height = bottom + 36
    parts.append(_text(escape(x_label), (left + right) / 2, height - 4, "middle"))
    spoken = ", ".join(f"{name} {number(bar.value, 3)}" for name, bar in zip(names, bars, strict=True))
    return Raw(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{escape(x_label)}: {escape(spoken)}" '
        f'font-family="system-ui, sans-serif" font-size="{_FONT}" style="max-width:100%;height:auto">'
        f"{''.join(parts)}</svg>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, thick: float = 1, dash: str = "") -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{thick}"{dashed}/>'
    )


def _text(safe: str, x: float, y: float, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor">{safe}</text>'
