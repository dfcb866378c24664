"""What the ranks of a run did in some steps that were profiled: read from its folder, as a picture and a table.

A profile is a folder of the run, `profiles/step-<n>/`: for each rank the trace of torch's profiler, which a person
opens in Perfetto or chrome://tracing, and a summary of it, which is read here. What other ranks or older versions have
left there may be anything.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nbllm.core.html import Raw, escape, fragment, table
from nbllm.core.quantities import counted
from nbllm.core.text_table import text_table

KINDS = ("computing", "communication", "data", "optimizer")
"""What a rank can be seen to do; in the picture, communication has a row of its own, since it goes on beside others."""

MOST_RANKS, MOST_BARS = 64, 2000  # that are drawn in all
_MOST_BYTES = 1 << 25  # of a summary; larger ones are not read
_MOST_DIGITS = 15  # of a number of steps or ranks
_LONGEST, _SHORTEST = 1e6, 1e-6  # seconds that a profile can have taken
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
        return _total(self.spans[kind]) / self.seconds

    @functools.cached_property
    def idle_spans(self) -> list[tuple[float, float]]:
        """When it did nothing that is known, in order."""
        seen = union(span for spans in self.spans.values() for span in spans)
        return without([(0.0, self.seconds)], seen)

    @property
    def idle(self) -> float:
        """The share of the time in which it did nothing that is known."""
        return _total(self.idle_spans) / self.seconds

    @property
    def shares(self) -> dict[str, float]:
        """The shares of the time, 0 to 1, by name in the order in which they are shown."""
        return {
            "computing": self.share("computing"),
            "communication": self.share("communication"),
            "exposed": self.exposed / self.seconds,
            "data": self.share("data"),
            "optimizer": self.share("optimizer"),
            "idle": self.idle,
        }


class Bar(NamedTuple):
    """Neighbouring spans drawn as one.

    Attributes:
        start: Seconds from the beginning of the profile.
        end: As `start`.
        busy: Seconds of it that the spans cover; the rest are gaps too short to be drawn.
        spans: How many they are.
    """

    start: float
    end: float
    busy: float
    spans: int

    @property
    def density(self) -> float:
        """The covered share of it, at least so much that it can be seen."""
        return max(0.3, min(1.0, self.busy / (self.end - self.start))) if self.end > self.start else 1.0


def bars(spans: list[tuple[float, float]], most: int) -> list[Bar]:
    """Return what to draw of spans in order: at most `most` bars, which are apart where the gaps are largest."""
    gaps = [after[0] - before[1] for before, after in itertools.pairwise(spans)]
    cuts = sorted(heapq.nlargest(most - 1, range(len(gaps)), key=gaps.__getitem__))
    ends = [*(cut + 1 for cut in cuts), len(spans)]
    parts = [spans[begin:end] for begin, end in itertools.pairwise([0, *ends])]
    return [Bar(part[0][0], part[-1][1], _total(part), len(part)) for part in parts if part]


class StepProfile:
    """The profile of some steps on all ranks; in a cell its picture: a row for each rank and what it does beside.

    Args:
        folder: Where the ranks have left it.

    Attributes:
        step: How many steps were done when it began.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.step = int(folder.name.removeprefix("step-"))

    @functools.cached_property
    def ranks(self) -> list[RankProfile]:
        """What each rank did; those whose summary cannot be read are left out."""
        found = {each.rank: each for path in self.folder.glob("summary-*.json") if (each := _read(path))}
        return [found[rank] for rank in sorted(found)]

    @property
    def traces(self) -> list[Path]:
        """The traces of torch's profiler, for Perfetto or chrome://tracing; one for each rank."""
        return sorted(self.folder.glob("trace-*.json"))

    @property
    def title(self) -> str:
        """How many steps of how many ranks it shows."""
        steps = max((each.steps for each in self.ranks), default=0)
        return f"{counted(steps, 'steps')} from step {self.step:,} on, {counted(len(self.ranks), 'ranks')}"

    def _rows(self) -> list[tuple[int | float, ...]]:
        return [
            (
                each.rank, round(1000 * each.seconds / each.steps, 1),
                *(round(100 * share, 1) for share in each.shares.values()),
            )
            for each in self.ranks
        ]  # fmt: skip

    def __repr__(self) -> str:
        rows = [_HEADER, *(tuple(map(str, row)) for row in self._rows())]
        return f"{self.title}\n\n{text_table(rows)}"

    def _repr_html_(self) -> str:
        if not self.ranks:
            return fragment("<p>Nothing of this profile can be read.</p>")
        return fragment(f"<p><strong>{escape(self.title)}</strong></p>{self.html()}")

    def html(self, *, most: int = MOST_BARS) -> str:
        """Return picture and table, of a profile of which something can be read."""
        return f'<div class="nbllm-scroll">{self.svg(most=most)}</div>{table(self._rows(), _HEADER)}'

    def svg(self, *, width: int = 860, most: int = MOST_BARS) -> Raw:
        """Return the picture: two rows a rank, time from left to right; under the pointer it says what a bar is.

        Args:
            width: In pixels; the drawing shrinks with its container.
            most: Bars in all; with more, those with the smallest gaps between them become one.
        """
        shown = self.ranks[:MOST_RANKS]
        longest = max(each.seconds for each in shown)
        scale = (width - _LEFT - 6) / longest
        of_kind = max(1, most // (len(KINDS) * len(shown)))
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
                parts += [_rectangle(kind, bar, top, scale) for bar in bars(spans, of_kind)]
        at = f'x="{width - 6}" y="{height - 5}" text-anchor="end" fill="currentColor"'
        parts.append(f"<text {at}>{1000 * longest:.1f} ms</text>")
        return Raw(
            f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{escape(self.title)}" '
            f'style="max-width:100%;height:auto;font:11px sans-serif">{"".join(parts)}</svg>'
        )


def step_profiles(run_folder: Path) -> list[StepProfile]:
    """Return the profiles of a run, in the order of their steps."""
    return sorted(map(StepProfile, _folders(run_folder)), key=lambda each: each.step)


def newest_profile(run_folder: Path) -> tuple[StepProfile, object] | None:
    """Return the profile that was written last, and a value that changes when another rank has written its part.

    None: there is none, or the first is just being written.
    """
    found = []
    for folder in _folders(run_folder):
        try:
            summaries = sum(name.startswith("summary-") for name in os.listdir(folder))
            if summaries:
                found.append((folder.stat().st_mtime_ns, folder.name, summaries, folder))
        except OSError:  # no folder, or it is being deleted
            continue
    if not found:
        return None
    *stamp, folder = max(found)
    return StepProfile(folder), tuple(stamp)


def _folders(run_folder: Path) -> list[Path]:
    found = (run_folder / "profiles").glob("step-*")
    return [each for each in found if (digits := each.name[5:]).isdecimal() and len(digits) <= _MOST_DIGITS]


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


def _total(spans: list[tuple[float, float]]) -> float:
    return sum(end - start for start, end in spans)


def _read(path: Path) -> RankProfile | None:
    """Return the summary in a file; None: it is none."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return None
        found: Any = json.loads(path.read_text())
        made = RankProfile(
            rank=int(found["rank"]),
            steps=int(found["steps"]),
            seconds=float(found["seconds"]),
            spans={kind: [(float(a), float(b)) for a, b in found["spans"][kind]] for kind in KINDS},
            exposed=float(found["exposed"]),
        )
    except (OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
        return None
    times = [made.exposed, *(at for spans in made.spans.values() for span in spans for at in span)]
    good = (
        _SHORTEST <= made.seconds <= _LONGEST
        and 0 <= made.rank < 10**_MOST_DIGITS
        and 0 < made.steps < 10**_MOST_DIGITS
        and all(0 <= at <= made.seconds * 1.001 for at in times)  # not of nan and infinity either
    )
    if not good:
        return None
    return dataclasses.replace(made, spans={kind: union(iter(spans)) for kind, spans in made.spans.items()})


def _rectangle(kind: str, bar: Bar, y: int, scale: float) -> str:
    said = f"{kind}, {1000 * bar.busy:.2f} ms{_pieces(bar)}, from {1000 * bar.start:.2f} ms on"
    pale = f' fill-opacity="{bar.density:.2f}"' if bar.density < 0.995 else ""
    return (
        f'<rect x="{_LEFT + bar.start * scale:.1f}" y="{y}" width="{max((bar.end - bar.start) * scale, 0.4):.1f}" '
        f'height="{_BAR}" fill="{_COLOURS[kind]}"{pale}><title>{said}</title></rect>'
    )


def _pieces(bar: Bar) -> str:
    return f" in {bar.spans:,} pieces" if bar.spans > 1 else ""


def _legend() -> str:
    parts = []
    for place, kind in enumerate(KINDS):
        x = _LEFT + 130 * place
        parts.append(f'<rect x="{x}" y="4" width="10" height="10" fill="{_COLOURS[kind]}"/>')
        parts.append(f'<text x="{x + 15}" y="13" fill="currentColor">{kind}</text>')
    return "".join(parts)
