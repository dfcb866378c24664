"""The gist of a run: its timeline without most of its steps, for a table of hundreds of runs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nbllm.runs.events import MAX_LINE, Event, event_files, parse_line
from nbllm.runs.timeline import Points, Timeline

WHOLE = 1 << 16  # bytes: up to so many new ones are read line by line
SPAN = 1 << 23  # bytes that are searched at once
PLACES = 60  # where steps are read of a longer file, evenly over it
LINES = 4  # at each place
TAIL = 1 << 13  # bytes at the end that are read whole: where the run stands, heartbeats too
RARE = (b'"start"', b'"action"', b'"evaluation"', b'"end"')  # what the timeline cannot do without


class Gist:
    """Follows a run by its event files; quick however long they are.

    Starts, actions, evaluations and ends are all read, so that rewinds, settings and held-out results are exact;
    of the steps as many as a sparkline needs, and the newest.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.timeline = Timeline()
        self._offsets: dict[str, int] = {}

    def look(self) -> Timeline:
        """Return the timeline, with what is new since the last look."""
        for path in event_files(self.folder):
            with contextlib.suppress(OSError), open(path, "rb") as file:  # deleted meanwhile, or not ours
                size = file.seek(0, 2)
                if size < self._offsets.get(path.name, 0):
                    self.timeline, self._offsets = Timeline(), {}  # the folder was replaced
                    return self.look()
                self._read(file, path.name, size)
        return self.timeline

    def sparkline(self, most: int = PLACES) -> list[float | None]:
        """Return at most `most` means of the training loss over equal spans of steps; `None` where none is."""
        return spark(self.timeline.steps, most)

    def _read(self, file: BinaryIO, name: str, size: int) -> None:
        offset = self._offsets.get(name, 0)
        every = 0 if size - offset <= WHOLE else (size - offset) // PLACES
        while offset < size:
            file.seek(offset)
            block = file.read(min(SPAN, size - offset))
            end = block.rfind(b"\n") + 1
            if not end and len(block) <= MAX_LINE:
                break  # a line that is still being written
            block = block[: end or len(block)]  # a line that is longer is none, and is skipped
            offset += len(block)
            lines = _chosen_lines(block, every) if every else block.splitlines()
            self.timeline.extend(event for line in lines if (event := _event(line)) is not None)
        self._offsets[name] = offset


def spark(points: Points, most: int) -> list[float | None]:
    """Return at most `most` means of the training loss over equal spans of steps, to four digits."""
    steps, values = points.steps, points.columns.get("loss")
    if values is None or len(steps) < 2:
        return []
    place, loss = np.array(steps, dtype=np.float64), np.array(values, dtype=np.float64)
    good = np.isfinite(loss)
    count = min(most, len(steps))
    which = np.minimum((place - place[0]) / (place[-1] - place[0]) * count, count - 1).astype(np.intp)[good]
    sums = np.bincount(which, loss[good], count)
    numbers = np.bincount(which, minlength=count)
    return [
        float(f"{total / number:.4g}") if number and math.isfinite(total) else None
        for total, number in zip(sums.tolist(), numbers.tolist(), strict=True)
    ]


def _event(line: bytes) -> Event | None:
    return parse_line(line) if len(line) <= MAX_LINE else None


def _chosen_lines(block: bytes, every: int) -> Iterator[bytes]:
    """Yield, in order, the lines that hold a rare event, some at every so many bytes, and those at the end."""
    chosen: dict[int, int] = {}
    for word in RARE:
        at = block.find(word)
        while at >= 0:
            begin, end = block.rfind(b"\n", 0, at) + 1, block.find(b"\n", at)
            end = end if end >= 0 else len(block)
            chosen[begin] = end
            at = block.find(word, end)
    for place in range(0, len(block), every):
        _choose(chosen, block, place, LINES)
    _choose(chosen, block, max(0, len(block) - TAIL), TAIL)
    for begin in sorted(chosen):
        yield block[begin : chosen[begin]]


def _choose(chosen: dict[int, int], block: bytes, place: int, most: int) -> None:
    """Choose up to `most` lines that begin at or after a place."""
    begin = 0 if place == 0 else block.find(b"\n", place) + 1
    for _ in range(most):
        end = block.find(b"\n", begin)
        if end < 0 or (place and begin == 0):
            return
        chosen[begin] = end
        begin = end + 1
