"""What one or more handles of a run have read of it: its record, and the fold of its events, kept up to date."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nbllm.runs.events import EventReader, Restarted
from nbllm.runs.settings import Setting, declared_settings
from nbllm.runs.store import RECORD, read_record
from nbllm.runs.timeline import SessionState, Timeline, begin_timeline


class RunReader:
    """Reads a run's folder as it grows; any thread may look.

    Args:
        path: The run's folder.

    Raises:
        RunError: There is no run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._guards = 0  # blocks of `guard` that are being executed, one in another
        self._fresh = False
        self._start_over()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Within the block no other thread looks, and the folder is read at most once: all is of one moment."""
        with self._lock:
            self._guards += 1
            try:
                yield
            finally:
                self._guards -= 1
                if self._guards == 0:
                    self._fresh = False

    def _start_over(self) -> None:
        self._record: dict[str, Any] = read_record(self.path)
        self.declared: list[Setting] = declared_settings(self._record)
        self._stamp = self._record_stamp()
        self._reader = EventReader(self.path)
        self._timeline = begin_timeline(self._record)
        self._grew: float | None = None
        self._looked = False

    @property
    def record(self) -> dict[str, Any]:
        """What `run.json` says, read again when it was written anew; when the folder is gone, what was read."""
        with self._lock:
            stamp = self._stamp if self._fresh else self._record_stamp()
            if stamp not in (None, self._stamp):
                self._start_over()
            return self._record

    def timeline(self) -> Timeline:
        """Return the fold of all events so far; when the folder is gone, of those that were read."""
        with self._lock:
            if self._fresh:
                return self._timeline
            stamp = self._record_stamp()
            if stamp is None:
                return self._timeline
            try:
                if stamp != self._stamp:
                    self._start_over()  # another run of the same name, or another copy
                self._poll()
            except Restarted:
                self._start_over()
                self._poll()
            self._fresh = self._guards > 0
            return self._timeline

    def session(self) -> tuple[SessionState, float | None]:
        """Return the newest session, and how many seconds ago new events were seen to arrive."""
        with self._lock:
            session = self.timeline().session
            return session, None if self._grew is None else time.monotonic() - self._grew

    @property
    def exists(self) -> bool:
        """Whether the folder is still there."""
        return self._record_stamp() is not None

    @property
    def damaged(self) -> int:
        """Lines that are not events."""
        return self._reader.damaged

    def _poll(self) -> None:
        for batch in self._reader.batches():
            self._timeline.extend(batch)
            if batch and self._looked:
                self._grew = time.monotonic()
        self._looked = True

    def _record_stamp(self) -> tuple[int, int] | None:
        try:
            found = (self.path / RECORD).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size
