"""What a trainer writes into its run's events, and what it does while the disk does not take them."""

from __future__ import annotations

import contextlib
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from nbllm.core.errors import RunError
from nbllm.runs.arguments import short
from nbllm.runs.events import EventWriter
from nbllm.runs.timeline import MAX_COLUMNS, USUAL

HEARTBEAT_SECONDS = 5.0


class Journal:
    """A trainer's events. While the disk refuses them they are kept in memory, and `flush` says so."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._process = psutil.Process()
        self._stopped = threading.Event()
        self._complained = False
        self._last_step = 0
        self._metrics = {kind: {"time", "step"} for kind in ("step", "evaluation")}  # names, by kind of event
        self._has_too_many = False

    def open(self) -> None:
        """Begin a session.

        Raises:
            RunError: The folder cannot be written.
        """
        self.writer = EventWriter(self.path, "trainer")
        self._heart = threading.Thread(target=self._beat, name=f"heartbeat of {self.path.name}", daemon=True)
        self._heart.start()

    def close(self) -> None:
        """End the session."""
        self._stopped.set()
        self._heart.join()
        self.flush()
        self.writer.close()

    def emit(self, kind: str, *, step: int, **fields: Any) -> dict[str, Any]:
        """Write one event, or keep it until `flush` succeeds; return its fields, but for metrics too many."""
        self._last_step = step
        if kind in self._metrics:
            fields = self._limited(kind, fields)
        self._try(lambda: self.writer.write(kind, step, **fields))
        return fields

    def _limited(self, kind: str, metrics: dict[str, Any]) -> dict[str, Any]:
        """Leave out metrics of ever new names, which no reader keeps either, and say so once."""
        known = self._metrics[kind]
        known.update(name for name in metrics if name in USUAL)
        kept = {}
        for name, value in metrics.items():
            if name in known or len(known) < MAX_COLUMNS:
                known.add(name)
                kept[name] = value
            elif not self._has_too_many:
                self._has_too_many = True
                text = (
                    f"more than {MAX_COLUMNS} metrics: {short(name)} and others of new names are not recorded"
                )
                self.emit("warning", step=self._last_step, text=text)
        return kept

    def flush(self) -> bool:
        """Write what was kept; return whether everything is on the disk now."""
        return self._try(self.writer.flush)

    def start(self, *, step: int, process: Mapping[str, Any], **fields: Any) -> None:
        """A trainer took the run up at `step`.

        Args:
            step: The step.
            process: As `this_process` describes it; while it is there, the run is live.
            fields: `where`, `checkpoint` and `choices`, for the record.
        """
        self.emit("start", step=step, from_step=step, **fields, **process)

    @property
    def memory(self) -> int:
        """Bytes of memory that this process holds."""
        return int(self._process.memory_info().rss)

    def end(self, *, step: int, state: str, reason: str | None, digest: str | None) -> None:
        """The run is over, for this trainer."""
        self.emit("end", step=step, state=state, reason=reason, digest=digest)

    def fail(self, error: BaseException, *, step: int) -> None:
        """The run ended by an error, perhaps before it began."""
        self.emit("end", step=step, state="failed", reason=reason_of(error), digest=None)

    def _beat(self) -> None:
        while not self._stopped.wait(HEARTBEAT_SECONDS):
            self._try(lambda: self.writer.write("heartbeat", self._last_step))

    def _try(self, write: Callable[[], object]) -> bool:
        try:
            write()
        except RunError as error:
            if not self._complained:  # the events cannot say it, so the terminal must; a log may be as full
                self._complained = True
                with contextlib.suppress(OSError, ValueError):
                    sys.stderr.write(f"{error}\nThe run waits.\n")
            return False
        self._complained = False
        return True


def reason_of(error: BaseException) -> str:
    """Return what an error says, and the line where it was raised."""
    trace = _to_the_user(traceback.extract_tb(error.__traceback__))
    place = f" (in {trace[-1].name}, {Path(trace[-1].filename).name}:{trace[-1].lineno})" if trace else ""
    return f"{type(error).__name__}: {error}{place}"


def _to_the_user(trace: Sequence[traceback.FrameSummary]) -> Sequence[traceback.FrameSummary]:
    """Return the frames of an error down to the line that called nbllm, where one did: that is where to look."""
    ours = str(Path(__file__).parents[1])
    called = [number for number, frame in enumerate(trace, 1) if not frame.filename.startswith(ours)]
    return trace[: called[-1]] if called else trace


class SilentJournal(Journal):
    """The journal of a rank that records nothing."""

    def open(self) -> None:
        """Nothing is written."""

    def close(self) -> None:
        """Nothing was written."""

    def flush(self) -> bool:
        """Return that nothing is missing on the disk."""
        return True

    def emit(self, kind: str, *, step: int, **fields: Any) -> dict[str, Any]:
        """Nothing is written; return the fields."""
        return fields
