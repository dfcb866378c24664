"""In what state a run is: judged from its newest session, and from whether its trainer is still there."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nbllm.runs.events import Event, event_files, is_number, parse_line
from nbllm.runs.lock import SILENCE, held_here
from nbllm.runs.process import is_alive
from nbllm.runs.timeline import Session

STATES = ("starting", "running", "paused", "finished", "stopped", "failed", "lost")
LIVE = frozenset({"starting", "running", "paused"})
START_GRACE = 120.0  # seconds from the run's record to its first event: importing torch on a slow disk
BLOCK = 1 << 16
FIRST_LINES = 1000  # heartbeats may come before the start
BACK_AFTER_STEP = 8  # events: a pause may be recorded just before the step that it ended


def judge(session: Session, folder: Path, record: Mapping[str, Any], grew: float | None = None) -> str:
    """Return the state of a run, one of `STATES`.

    Args:
        session: Where its newest session stands.
        folder: The run's folder.
        record: Its record.
        grew: Seconds since this reader last saw new events, by its own clock; `None` when it saw none.
    """
    if session.end is not None:  # also of a session that failed before it had begun
        ended = session.end.get("state")
        return ended if ended in ("finished", "stopped", "failed") else "failed"
    if session.start is None:
        return "starting" if _may_start(folder, record) else "lost"
    alive = is_alive(session.start)
    if alive is None:
        alive = _heard_of(session, folder, grew)
    elif alive and session.start.get("pid") == os.getpid() and _is_thread(session.start):
        alive = held_here(folder)  # the process lives, since it is this one; does the thread?
    if not alive:
        return "lost"
    return "running" if session.paused_at is None else "paused"


def _is_thread(start: Event) -> bool:
    return "thread" in (start.get("where"), start.get("thread"), start.get("mode"))


def _may_start(folder: Path, record: Mapping[str, Any]) -> bool:
    created = record.get("created")
    if not is_number(created):
        return False
    return held_here(folder) or abs(time.time() - created) < START_GRACE


def _heard_of(session: Session, folder: Path, grew: float | None) -> bool:
    """Judge a trainer on another machine by its silence; its clock and ours may differ."""
    if grew is not None and grew < SILENCE:
        return True
    moments = [session.last_time] if session.last_time is not None else []
    with contextlib.suppress(OSError, IndexError):
        moments.append(event_files(folder)[-1].stat().st_mtime)
    return any(abs(time.time() - moment) < SILENCE for moment in moments)


def newest_session(folder: Path) -> Session:
    """Return where the newest session stands, from the ends of the files alone: quick for any run."""
    files = event_files(folder)
    later: list[Event] = []
    session = Session()
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
    with open(path, "rb") as file:
        for _ in range(FIRST_LINES):
            line = file.readline(1 << 22)
            event = parse_line(line) if line.endswith(b"\n") else None
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
    with open(path, "rb") as file:
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
