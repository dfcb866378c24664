"""What the ranks of a run did in some steps that were profiled: read from its folder, as a picture and a table.

A profile is a folder of the run, `profiles/step-<n>/`: for each rank the trace of torch's profiler, which a person
opens in Perfetto or chrome://tracing, and a summary of it, which is read here. What other ranks or older versions have
left there may be anything.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nbllm.core.html import Raw, escape, fragment, table
from nbllm.core.text_table import text_table

KINDS = ("computing", "communication", "data", "optimizer")
"""What a rank can be seen to do; in the picture, communication has a row of its own, since it goes on beside others."""

MOST_RANKS, MOST_SPANS = 64, 2000  # that are drawn
_HEADER = (
    "rank",
    "step, ms",
    "computing, %",
    "communication, %",
    "of it exposed, %",
    "data, %",
    "optimizer, %",
    "idle, %",
)
# Okabe and Ito's colours, which colour-blind people can tell apart, as the theme has them.
_COLOURS = {
    "computing": "var(--nbllm-series-1, #0072b2)",
    "communication": "var(--nbllm-series-2, #d55e00)",
    "data": "var(--nbllm-series-4, #cc79a7)",
    "optimizer": "var(--nbllm-series-3, #007f5f)",
}
_LEFT, _ROW, _BAR = 60, 34, 13  # pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankProfile:
    """What one rank did.

    Attributes:
        rank: Which.
        steps: How many steps were profiled.
        seconds: From the beginning of the first to the end of the last.
        spans: Of each of `KINDS`, when it did so: seconds from the beginning, (start, end) in order.
        exposed: Seconds of communication beside which it did nothing else.
    """

    rank: int
    steps: int
    seconds: float
    spans: dict[str, list[tuple[float, float]]]
    exposed: float

    def share(self, kind: str) -> float:
        """Return the share of the time, 0 to 1, in which it did one of `KINDS`."""
        return sum(end - start for start, end in self.spans[kind]) / self.seconds

    @property
    def idle(self) -> float:
        """The share of the time in which it did nothing that is known."""
        seen = union(span for spans in self.spans.values() for span in spans)
        return 1 - sum(end - start for start, end in seen) / self.seconds


class StepProfile:
    """The profile of some steps on all ranks; in a cell its picture: a row for each rank and what it does beside.

    Args:
        folder: Where the ranks have left it.

    Attributes:
        step: How many steps were done when it began.
        ranks: What each rank did; those whose summary cannot be read are left out.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.step = int(folder.name.removeprefix("step-"))
        found = (_read(path) for path in folder.glob("summary-*.json"))
        self.ranks = sorted((each for each in found if each is not None), key=lambda each: each.rank)

    @property
    def traces(self) -> list[Path]:
        """The traces of torch's profiler, for Perfetto or chrome://tracing; one for each rank."""
        return sorted(self.folder.glob("trace-*.json"))

    @property
    def _title(self) -> str:
        count = max((each.steps for each in self.ranks), default=0)
        return f"{count} steps from step {self.step} on, {len(self.ranks)} ranks"

    def _rows(self) -> list[tuple[int | float, ...]]:
        return [
            (
                each.rank, round(1000 * each.seconds / each.steps, 1), *(
                    round(100 * share, 1)
                    for share in (
                        each.share("computing"), each.share("communication"), each.exposed / each.seconds,
                        each.share("data"), each.share("optimizer"), each.idle,
                    )
                ),
            )
            for each in self.ranks
        ]  # fmt: skip

    def __repr__(self) -> str:
        rows = [_HEADER, *(tuple(map(str, row)) for row in self._rows())]
        return f"{self._title}\n\n{text_table(rows)}"

    def _repr_html_(self) -> str:
        if not self.ranks:
            return fragment("<p>Nothing of this profile can be read.</p>")
        picture = f'<div class="nbllm-scroll">{self.svg()}</div>'
        return fragment(
            f"<p><strong>{escape(self._title)}</strong></p>{picture}{table(self._rows(), _HEADER)}"
        )

    def svg(self, *, width: int = 860) -> Raw:
        """Return the picture: two rows a rank, time from left to right; under the pointer it says what a bar is.

        Args:
            width: In pixels; the drawing shrinks with its container.
        """
        shown = self.ranks[:MOST_RANKS]
        longest = max(each.seconds for each in shown)
        scale = (width - _LEFT - 6) / longest
        height = 24 + _ROW * len(shown) + 20
        parts = [_legend()]
        for place, each in enumerate(shown):
            y = 24 + _ROW * place
            parts.append(f'<text x="0" y="{y + 14}" fill="currentColor">rank {each.rank}</text>')
            parts.append(
                f'<rect x="{_LEFT}" y="{y}" width="{each.seconds * scale:.1f}" height="{2 * _BAR + 2}" '
                'fill="currentColor" opacity=".07"/>'
            )
            for kind, spans in each.spans.items():
                top = y + (_BAR + 2 if kind == "communication" else 0)
                parts += [_bar(kind, span, top, scale) for span in spans[:MOST_SPANS]]
        at = f'x="{width - 6}" y="{height - 5}" text-anchor="end" fill="currentColor"'
        parts.append(f"<text {at}>{1000 * longest:.1f} ms</text>")
        return Raw(
            f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{escape(self._title)}" '
            f'style="max-width:100%;height:auto;font:11px sans-serif">{"".join(parts)}</svg>'
        )


def step_profiles(run_folder: Path) -> list[StepProfile]:
    """Return the profiles of a run, in the order of their steps."""
    folders = [each for each in (run_folder / "profiles").glob("step-*") if each.name[5:].isdecimal()]
    return [StepProfile(each) for each in sorted(folders, key=lambda each: int(each.name[5:]))]


def union(spans: Iterator[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return spans of time in order, those that touch as one."""
    out: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        elif end > start:
            out.append((start, end))
    return out


def without(spans: list[tuple[float, float]], others: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return what of some spans lies in none of the others; both are as `union` returns them."""
    out, place = [], 0
    for first, last in spans:
        start = first
        while place < len(others) and others[place][1] <= start:
            place += 1
        at = place
        while at < len(others) and others[at][0] < last:
            if others[at][0] > start:
                out.append((start, others[at][0]))
            start = max(start, others[at][1])
            at += 1
        if start < last:
            out.append((start, last))
    return out


def _read(path: Path) -> RankProfile | None:
    """Return the summary in a file; None: it is none."""
    try:
        found: Any = json.loads(path.read_text())
        made = RankProfile(
            rank=int(found["rank"]),
            steps=int(found["steps"]),
            seconds=float(found["seconds"]),
            spans={kind: [(float(a), float(b)) for a, b in found["spans"][kind]] for kind in KINDS},
            exposed=float(found["exposed"]),
        )
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return None
    times = [
        made.seconds,
        made.exposed,
        *(at for spans in made.spans.values() for span in spans for at in span),
    ]
    good = all(math.isfinite(at) and 0 <= at <= made.seconds * 1.001 for at in times)
    return made if good and made.seconds > 0 and made.steps > 0 else None


def _bar(kind: str, span: tuple[float, float], y: int, scale: float) -> str:
    start, end = span
    said = f"{kind}, {1000 * (end - start):.2f} ms, from {1000 * start:.2f} ms on"
    return (
        f'<rect x="{_LEFT + start * scale:.1f}" y="{y}" width="{max((end - start) * scale, 0.4):.1f}" '
        f'height="{_BAR}" fill="{_COLOURS[kind]}"><title>{said}</title></rect>'
    )


def _legend() -> str:
    parts = []
    for place, kind in enumerate(KINDS):
        x = _LEFT + 130 * place
        parts.append(f'<rect x="{x}" y="4" width="10" height="10" fill="{_COLOURS[kind]}"/>')
        parts.append(f'<text x="{x + 15}" y="13" fill="currentColor">{kind}</text>')
    return "".join(parts)
