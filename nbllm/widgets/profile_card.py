"""The newest profile of a run's steps as plain JSON, small enough for a browser, for the training panel."""

from __future__ import annotations

import heapq
import time
from pathlib import Path
from typing import Any

from nbllm.core.terminal import visible
from nbllm.runs.step_profile import (
    KINDS,
    MOST_BARS,
    MOST_RANKS,
    RankProfile,
    StepProfile,
    bars,
    newest_profile,
)

LOOK_SECONDS = 1.0  # how often the folder is looked at


class ProfileCards:
    """Follows the profiles of one run; the newest is read only when it may have changed."""

    def __init__(self) -> None:
        self._looked = -LOOK_SECONDS
        self._stamp: object = None
        self._shown: dict[str, Any] | None = None

    def newest(self, run_folder: Path) -> dict[str, Any] | None:
        """Return the newest profile: the same object until there is another. None: there is none."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            found = newest_profile(run_folder)
            stamp = None if found is None else (found[1], run_folder)
            if stamp != self._stamp:
                self._stamp, self._shown = stamp, None if found is None else profile_card(found[0])
        return self._shown


def profile_card(profile: StepProfile) -> dict[str, Any] | None:
    """Return a profile as JSON of at most `MOST_BARS` bars, times in milliseconds. None: nothing of it can be read."""
    if not profile.ranks:
        return None
    shown = profile.ranks[:MOST_RANKS]
    of_kind = max(1, MOST_BARS // ((len(KINDS) + 1) * len(shown)))
    return {
        "step": profile.step,
        "title": profile.title,
        "length": max(_milliseconds(each.seconds) for each in shown),
        "folder": visible(str(profile.folder)),
        "traces": len(profile.traces),
        "hidden": len(profile.ranks) - len(shown),
        "ranks": [_rank(each, of_kind) for each in shown],
    }


def _rank(rank: RankProfile, most: int) -> dict[str, Any]:
    """Return what a rank did: shares in percent, and bars of each kind: start, end, covered, how many spans."""
    longest = sorted(heapq.nlargest(most, rank.idle_spans, key=lambda span: span[1] - span[0]))
    drawn = {"idle": [bar for span in longest for bar in bars([span], 1)]}  # the shortest are not drawn
    drawn |= {kind: bars(rank.spans[kind], most) for kind in KINDS}
    return {
        "rank": rank.rank,
        "length": _milliseconds(rank.seconds),
        "step": _milliseconds(rank.seconds / rank.steps),
        "shares": {name: round(100 * share, 1) for name, share in rank.shares.items()},
        "bars": {
            kind: [
                [_milliseconds(bar.start), _milliseconds(bar.end), _milliseconds(bar.busy), bar.spans]
                for bar in of
            ]
            for kind, of in drawn.items()
        },
    }


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 3)
