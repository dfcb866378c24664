"""The runs of a folder as rows of a table, kept up to date at little cost."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from nbllm.core.errors import UserError
from nbllm.core.terminal import visible
from nbllm.runs.events import FOLDER, event_files
from nbllm.runs.liveness import judge
from nbllm.runs.run import Run
from nbllm.runs.skim import Skim, newest_session
from nbllm.runs.store import RECORD, run_folders
from nbllm.runs.summary import summarize
from nbllm.runs.timeline import begin_timeline

MOST_REASON = 500  # characters

Row = dict[str, Any]
Stamp = tuple[Any, ...]


class RunEntry:
    """One run of the table.

    Args:
        path: The run's folder.

    Raises:
        RunError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record_stamp = record_stamp(path)
        self.run = Run(path)
        self.stamp: Stamp = ()  # changes with every event
        self.row: Row = {}
        self.sparkline: list[float | None] = []
        self.is_studied = False
        self._skim = Skim(path, self.run.record)
        self._timeline = begin_timeline(self.run.record)
        self._grew: float | None = None
        self._events = str(path / FOLDER)
        self._folder_changed = 0

    def look(self) -> bool:
        """Bring the row up to date from the ends of the files, and say whether it changed."""
        if self._timeline.session.end is not None and self._folder_changed == self._changed():
            return False  # no more events come but by a new file in the folder
        self._folder_changed = self._changed()
        stamp = _sizes(self.path)
        if stamp != self.stamp:
            if self.stamp:
                self._grew = time.monotonic()
            self.stamp = stamp
            if self.is_studied:
                self._read()
            else:
                self._timeline.session = newest_session(self.path, self.run.record)
        return self._make_row()

    def study(self) -> bool:
        """Read as much of the events as the row and the sparkline need, and say whether the row changed."""
        self.is_studied = True
        self._read()
        return self._make_row()

    def _read(self) -> None:
        self._timeline = self._skim.look()
        self.sparkline = self._skim.sparkline()

    def _changed(self) -> int:
        try:
            return os.stat(self._events).st_mtime_ns
        except OSError:
            return 0

    def _make_row(self) -> bool:
        before, self.row = self.row, self._row()
        return before != self.row

    def _row(self) -> Row:
        grew = None if self._grew is None else time.monotonic() - self._grew
        state = judge(self._timeline.session, self.path, self.run.record, grew)
        summary = summarize(self.path, self.run.record, self._timeline, state)
        parent = {"run": visible(summary.parent), "step": summary.parent_step} if summary.parent else None
        return {
            "name": summary.name,
            "state": summary.label,
            "reason": "" if summary.label == "replayed" else visible(summary.reason)[:MOST_REASON],
            "step": summary.step,
            "steps": summary.steps,
            "loss": summary.loss,
            "held_out": summary.bits_per_byte,
            "parent": parent,
            "replay_of": visible(summary.replay_of),
            "created": summary.created,
            "time": summary.last_time,
        }


class Overview:
    """All runs of a folder, those that begin later too.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, RunEntry] = {}
        self.unreadable: list[list[str]] = []  # name and reason
        self._failed: dict[str, tuple[Stamp, str]] = {}

    def look(self) -> list[str]:
        """Bring all rows up to date, and return the names of those that changed."""
        unreadable, there, changed = [], set(), []
        for path in run_folders(self.folder):
            reason = self._open(path)
            if reason:
                unreadable.append([visible(path.name), reason])
                continue
            there.add(path.name)
            if self.entries[path.name].look():
                changed.append(path.name)
        self.entries = {name: entry for name, entry in self.entries.items() if name in there}
        self.unreadable = unreadable
        return changed

    def study(self, seconds: float) -> list[str]:
        """Study entries that are new, the newest runs first, for some time; return the names of rows that changed."""
        until = time.monotonic() + seconds
        waiting = [entry for entry in self.entries.values() if not entry.is_studied]
        waiting.sort(key=lambda entry: entry.row["created"] or 0.0, reverse=True)
        changed = []
        for entry in waiting:
            if entry.study():
                changed.append(entry.path.name)
            if time.monotonic() >= until:
                break
        return changed

    @property
    def is_studied(self) -> bool:
        """Whether all entries have been studied."""
        return all(entry.is_studied for entry in self.entries.values())

    def _open(self, path: Path) -> str:
        """Make the entry of a run where there is none yet, or another record; return why that failed, or ""."""
        name = path.name
        if visible(name) != name:
            return "Its name has characters that cannot be shown."
        stamp = record_stamp(path)
        entry = self.entries.get(name)
        if entry is not None and entry.record_stamp == stamp:
            return ""
        if name in self._failed and self._failed[name][0] == stamp:
            return self._failed[name][1]
        try:
            self.entries[name] = RunEntry(path)
        except UserError as error:
            self._failed[name] = stamp, visible(error.what)
            return visible(error.what)
        self._failed.pop(name, None)
        return ""


def record_stamp(path: Path) -> Stamp:
    """Return a value that changes when a run's record is rewritten."""
    try:
        found = os.stat(os.path.join(path, RECORD))
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _sizes(path: Path) -> tuple[tuple[str, int], ...]:
    sizes = []
    for file in event_files(path):
        try:
            sizes.append((file.name, file.stat().st_size))
        except OSError:
            continue
    return tuple(sizes)
