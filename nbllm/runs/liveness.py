"""In what state a run is: judged from its newest session, and from whether its trainer is still there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbllm.runs.events import event_files, is_number
from nbllm.runs.lock import SILENCE, held_here, is_held
from nbllm.runs.process import is_alive
from nbllm.runs.timeline import SessionState

STATES = ("starting", "running", "paused", "finished", "stopped", "failed", "lost")
LIVE = frozenset({"starting", "running", "paused"})
START_GRACE = 120.0  # seconds from the run's record to its first event: importing torch on a slow disk


def judge(session: SessionState, folder: Path, record: Mapping[str, Any], grew: float | None = None) -> str:
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
    elif alive:  # the process does; but does it train this run?
        alive = is_held(folder) is not False
    if not alive:
        return "lost"
    return "running" if session.paused_at is None else "paused"


def waits_in_queue(record: Mapping[str, Any]) -> bool:
    """Say whether a run that has not begun is a cluster's job, which may wait for days."""
    return record.get("slurm") is not None


def _may_start(folder: Path, record: Mapping[str, Any]) -> bool:
    if waits_in_queue(record):
        return True
    created = record.get("created")
    if not is_number(created):
        return False
    return held_here(folder) or abs(time.time() - created) < START_GRACE


def _heard_of(session: SessionState, folder: Path, grew: float | None) -> bool:
    """Judge a trainer on another machine by its silence; its clock and ours may differ."""
    if grew is not None and grew < SILENCE:
        return True
    moments = [session.last_time] if session.last_time is not None else []
    with contextlib.suppress(OSError, IndexError):
        moments.append(event_files(folder)[-1].stat().st_mtime)
    return any(abs(time.time() - moment) < SILENCE for moment in moments)
