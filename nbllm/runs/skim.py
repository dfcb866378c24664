"""The fast reader of a run: its timeline without most of its steps, and its newest session from the ends of its files.

What `nbllm.runs.summary` says of a skimmed run is what it says of the whole fold: starts, actions, evaluations and ends
are all read, and so are the newest step, the newest loss, and the step that a rewind or a resumption went back to.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nbllm.core.io import open_regular
from nbllm.runs.events import MAX_LINE, MAX_SKIPPED, Event, event_files, is_number, parse_line, parse_lines
from nbllm.runs.timeline import Points, SessionState, Timeline, begin_timeline

WHOLE = 1 << 16  # bytes: up to so many new ones are read line by line
SPAN = 1 << 23  # bytes that are searched at once
PLACES = 60  # where steps are read of a longer file, evenly over it
LINES = 4  # at each place
TAIL = 1 << 13  # bytes at the end that are read whole: where the run stands, heartbeats too
# What the timeline cannot do without; one expression is searched three times as fast as the four words.
RARE = re.compile(rb'"kind"\s*:\s*"(?:start|action|evaluation|end)"')
BLOCK = 1 << 16
FIRST_LINES = 1000  # heartbeats may come before the start
BACK_AFTER_STEP = 8  # events: a pause may be recorded just before the step that it ended


class Skim:
    """Follows a run by its event files; quick however long they are.

    Starts, actions, evaluations and ends are all read, so that rewinds, settings and held-out results are exact; of the
    steps as many as a sparkline needs, and those that a summary needs.

    Args:
        folder: The run's folder.
        record: What its `run.json` says.
        curve: Whether steps are read for a sparkline, too.
    """

    def __init__(self, folder: Path, record: Mapping[str, Any], *, curve: bool = True) -> None:
        self.folder = folder
        self.record = record
        self.curve = curve
        self._start_over()

    def _start_over(self) -> None:
        self.timeline = begin_timeline(self.record)
        self._offsets: dict[str, int] = {}

    def look(self) -> Timeline:
        """Return the timeline, with what is new since the last look."""
        for path in event_files(self.folder):
            with (
                contextlib.suppress(OSError),
                open_regular(path, follow=False) as file,
            ):  # deleted, or not ours
                size = file.seek(0, 2)
                if size < self._offsets.get(path.name, 0):
                    self._start_over()  # the folder was replaced
                    return self.look()
                self._read(file, path.name, size)
        self._find_current_step()
        return self.timeline

    def _find_current_step(self) -> None:
        """Take the event of the current step, where a rewind or a resumption went back to one that was left out."""
        step, known = self.timeline.step, self.timeline.steps.steps
        if step == 0 or (known and known[-1] >= step):
            return
        for path in reversed(event_files(self.folder)):
            event = _last_of_step(path, step)
            if event is not None:
                self.timeline.steps.add([event])
                return

    def sparkline(self, most: int = PLACES) -> list[float | None]:
        """Return at most `most` means of the training loss over equal spans of steps; `None` where none is."""
        return spark(self.timeline.steps, most)

    def _read(self, file: BinaryIO, name: str, size: int) -> None:
        offset = self._offsets.get(name, 0)
        is_short = size - offset <= WHOLE
        every = (size - offset) // PLACES if self.curve else size
        skipped = 0
        while offset < size:
            file.seek(offset)
            block = file.read(min(SPAN, size - offset))
            end = block.rfind(b"\n") + 1
            if not end and len(block) <= MAX_LINE:
                break  # a line that is still being written
            block = block[: end or len(block)]  # a line that is longer is none, and is skipped
            offset += len(block)
            skipped = 0 if end else skipped + len(block)
            if skipped > MAX_SKIPPED:
                offset = size
            lines = block.splitlines() if is_short else _chosen_lines(block, every)
            events, _ = parse_lines([line for line in lines if len(line) <= MAX_LINE])
            self.timeline.extend(events)
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
    """Yield, in order, the lines that a summary needs, some at every so many bytes, and those at the end."""
    chosen: dict[int, int] = {}
    for match in RARE.finditer(block):
        begin, end = _line_around(block, match.start())
        chosen[begin] = end
    for place in range(0, len(block), every):
        _choose(chosen, block, place, LINES)
    _choose(chosen, block, max(0, len(block) - TAIL), TAIL)
    for newest in (_newest_step(block, b'"step"'), _newest_step(block, b'"loss"', "loss")):
        if newest is not None:
            chosen[newest[0]] = newest[1]
    for begin in sorted(chosen):
        yield block[begin : chosen[begin]]


def _line_around(block: bytes, at: int) -> tuple[int, int]:
    end = block.find(b"\n", at)
    return block.rfind(b"\n", 0, at) + 1, end if end >= 0 else len(block)


def _newest_step(block: bytes, word: bytes, number: str = "") -> tuple[int, int] | None:
    """Return where the last step event with `word` in it lies, whose `number`, if one is named, is one."""
    at = block.rfind(word)
    while at >= 0:
        begin, end = _line_around(block, at)
        event = None if b'"heartbeat"' in block[begin:end] else _event(block[begin:end])
        if event is not None and event["kind"] == "step" and (not number or is_number(event.get(number))):
            return begin, end
        at = block.rfind(word, 0, begin)
    return None


def _last_of_step(path: Path, step: int) -> Event | None:
    """Return the last event in a file that recorded this step."""
    number = b"%d" % step
    with contextlib.suppress(OSError):
        for line in _lines_backwards(path):
            event = _event(line) if number in line and b'"step"' in line else None
            if event is not None and (event["kind"], event["step"]) == ("step", step):
                return event
    return None


def _choose(chosen: dict[int, int], block: bytes, place: int, most: int) -> None:
    """Choose up to `most` lines that begin at or after a place."""
    begin = 0 if place == 0 else block.find(b"\n", place) + 1
    for _ in range(most):
        end = block.find(b"\n", begin)
        if end < 0 or (place and begin == 0):
            return
        chosen[begin] = end
        begin = end + 1


def newest_session(folder: Path, record: Mapping[str, Any]) -> SessionState:
    """Return where the newest session stands, from the ends of the files alone: quick for any run."""
    files = event_files(folder)
    later: list[Event] = []
    session = begin_timeline(record).session
    for number in range(len(files), 0, -1):
        try:
            start, late = _first(files[number - 1]), _last_events(files[number - 1])
        except OSError:
            continue
        later = [*late, *later]  # a trainer that failed before it could start leaves an end, and no start
        if start is not None:
            session.take(start)
            session.number = number
            break
    for event in later:
        session.take(event)
    return session


def _first(path: Path) -> Event | None:
    """Return the `start` event, which is among the first of a session's file."""
    with open_regular(path, follow=False) as file:
        for _ in range(FIRST_LINES):
            line = file.readline(MAX_LINE)
            if not line.endswith(b"\n"):
                return None
            event = parse_line(line)
            if event is not None and event["kind"] == "start":
                return event
    return None


def _last_events(path: Path) -> list[Event]:
    """Return the last events of a file, oldest first: from far enough back to know step, loss and pause."""
    late: list[Event] = []
    num_after_step = -1
    for line in _lines_backwards(path):
        event = parse_line(line)
        if event is None or event["kind"] == "start":
            continue
        if event["kind"] == "heartbeat" and late:
            continue
        late.append(event)
        if num_after_step >= 0:
            num_after_step += 1
        elif event["kind"] == "step":
            num_after_step = 0
        if num_after_step >= BACK_AFTER_STEP:
            break
    return late[::-1]


def _lines_backwards(path: Path) -> Iterator[bytes]:
    with open_regular(path, follow=False) as file:
        position = file.seek(0, os.SEEK_END)
        tail, torn = b"", True  # what follows the last line end is torn or still being written
        while position > 0:
            begin = max(0, position - BLOCK)
            file.seek(begin)
            lines = (file.read(position - begin) + tail).split(b"\n")
            tail, position = lines[0], begin
            if len(tail) > 1 << 22:
                return
            for line in reversed(lines[1:]):
                if not torn:
                    yield line
                torn = False
        if not torn:
            yield tail
