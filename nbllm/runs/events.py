"""The events of a run: append-only JSON lines that one trainer writes and anybody reads while it does.

Each session of a trainer writes a file of its own, so a line torn by a crash is the last of its file and
never glued to a later one. Sessions are ordered by their number, never by the clock, which may go backwards.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from nbllm.core.errors import RunError
from nbllm.core.io import is_link, open_regular
from nbllm.core.terminal import shorten

FOLDER = "events"
DURABLE = frozenset({"start", "action", "checkpoint", "end"})  # on the disk before `write` returns
MAX_LINE = 4 << 20  # bytes; a longer line is damage or an attack, not an event
MAX_SKIPPED = (
    1 << 28
)  # bytes of such a line after which the rest of the file is not read: it may be one large hole
CHUNK = 1 << 20
MAX_COUNT = 1 << 53
NAME = re.compile(r"(?P<writer>[A-Za-z0-9_.]+)-(?P<number>[0-9]{1,9})\.jsonl")

Event = dict[str, Any]


class EventWriter:
    """Appends the events of one session to `events/<writer>-<n>.jsonl`; any thread may write.

    Args:
        folder: The run's folder.
        writer: Who writes: "trainer". Letters, digits, `_` and `.`.

    Raises:
        RunError: The folder cannot be written.
    """

    def __init__(self, folder: Path | str, writer: str = "trainer") -> None:
        assert re.fullmatch(r"[A-Za-z0-9_.]+", writer), writer
        self.folder = Path(folder) / FOLDER
        self._lock = threading.Lock()
        self._buffer = b""
        self._durable_pending = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.session, self._descriptor = self._open(writer)
        except OSError as error:
            raise _cannot_write(self.folder, error) from error

    def _open(self, writer: str) -> tuple[int, int]:
        number = max((key[0] for key, _ in _files(self.folder)), default=0)
        while True:  # another writer may take the number first
            number += 1
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            try:
                self.path = self.folder / f"{writer}-{number:04d}.jsonl"
                return number, os.open(self.path, flags, 0o644)
            except FileExistsError:
                continue

    def write(self, kind: str, step: int, **fields: Any) -> Event:
        """Append one event and return it. Numbers that are not finite are written as null: JSON has none.

        Raises:
            RunError: The line could not be written (disk full, say). It is kept and goes before the next.
        """
        event: Event = {"time": time.time(), "kind": kind, "step": int(step), **fields}
        line = _dump(event)
        with self._lock:
            self._buffer += line
            self._durable_pending |= kind in DURABLE
            self._flush()
        return event

    def flush(self) -> None:
        """Write what an earlier failure left.

        Raises:
            RunError: It still cannot be written.
        """
        with self._lock:
            self._flush()

    @property
    def unwritten(self) -> int:
        """Bytes that could not be written yet."""
        return len(self._buffer)

    def _flush(self) -> None:
        if self._descriptor < 0:
            raise RunError("The event file is closed.", where=self.path)
        try:
            while self._buffer:  # a nearly full disk takes a part of a line; the rest follows it
                written = os.write(self._descriptor, self._buffer)
                self._buffer = self._buffer[written:]
            if self._durable_pending:
                os.fsync(self._descriptor)
                self._durable_pending = False
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def close(self) -> None:
        """Close the file; what could not be written is lost, so `flush` first."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EventReader:
    """Reads the events of a run while they are written: each `poll` returns what is new.

    A line without its end is left for the next poll; one that is not an event is skipped, and counted.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder) / FOLDER
        self.damaged = 0
        self._offsets: dict[str, int] = {}
        self._skipping: dict[str, int] = {}  # files inside a line that is too long, with the bytes skipped

    def poll(self) -> list[Event]:
        """Return the events since the last poll, in the order of the sessions."""
        return [event for batch in self.batches() for event in batch]

    def batches(self) -> Iterator[list[Event]]:
        """Yield the events since the last poll, some thousand at a time: a long run needs little memory.

        Raises:
            Restarted: A file is shorter than what was read of it (the folder was replaced): start over.
        """
        # Listed before the first is read: when a session is listed, the one before it has written its last.
        for _, entry in _files(self.folder):
            try:
                size = entry.stat().st_size
                offset = self._offsets.get(entry.name, 0)
                if size < offset:
                    raise Restarted
                if size > offset and self._skipping.get(entry.name, 0) <= MAX_SKIPPED:
                    with open_regular(Path(entry.path), follow=False) as file:
                        yield from self._read(entry.name, file, offset)
            except OSError:
                continue  # deleted while we read, or not ours to read

    def _read(self, name: str, file: Any, offset: int) -> Iterator[list[Event]]:
        file.seek(offset)
        pending = b""
        while chunk := file.read(CHUNK):
            pending += chunk
            end = pending.rfind(b"\n") + 1
            if end:
                lines, pending = pending[:end], pending[end:]
                if name in self._skipping:
                    del self._skipping[name]
                    lines = lines.partition(b"\n")[2]
                self._offsets[name] = offset = offset + end
                events, damaged = parse_lines(lines.splitlines())
                self.damaged += damaged
                yield events
            elif len(pending) > MAX_LINE:
                self.damaged += name not in self._skipping
                self._skipping[name] = self._skipping.get(name, 0) + len(pending)
                self._offsets[name] = offset = offset + len(pending)
                pending = b""
                if self._skipping[name] > MAX_SKIPPED:
                    return


class Restarted(Exception):
    """The files that a reader follows were replaced by shorter ones."""


def _files(folder: Path) -> list[tuple[tuple[int, str], os.DirEntry[str]]]:
    """Return the event files with their sort key (session, name), in order; none when there is no folder."""
    found: list[tuple[tuple[int, str], os.DirEntry[str]]] = []
    if is_link(folder):
        return found  # its events are another run's
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                match = NAME.fullmatch(entry.name)
                if match and entry.is_file(follow_symlinks=False):
                    found.append(((int(match["number"]), entry.name), entry))
    except OSError:
        return []
    return sorted(found, key=lambda pair: pair[0])


def event_files(folder: Path | str) -> list[Path]:
    """Return a run's event files in the order of their sessions."""
    return [Path(entry.path) for _, entry in _files(Path(folder) / FOLDER)]


def parse_lines(lines: list[bytes]) -> tuple[list[Event], int]:
    """Return the events on whole lines, and how many of the lines hold none.

    All are decoded at once, which is twice as fast, or one by one when that fails.
    """
    found = _loads(b"[" + b",".join(lines) + b"]")
    if not isinstance(found, list) or len(found) != len(lines):
        found = [_loads(line) for line in lines if line.strip()]
    events = [event for event in found if _is_event(event)]
    return events, len(found) - len(events)


def parse_line(line: bytes) -> Event | None:
    """Return the event on a line, or `None` when it is not one."""
    event = _loads(line)
    return event if _is_event(event) else None


def _loads(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _is_event(event: Any) -> bool:
    # Written out, since it is called for every line of a long run.
    if type(event) is not dict:
        return False
    kind, step, moment = event.get("kind"), event.get("step"), event.get("time")
    return (
        type(kind) is str
        and type(step) is int
        and 0 <= step < MAX_COUNT
        and (type(moment) is float or type(moment) is int)
        and -1e300 < moment < 1e300
    )


def is_number(value: object) -> TypeGuard[float]:
    """Say whether a value out of JSON is a number to compute with: no bool, NaN, infinity or giant."""
    return (type(value) is float or type(value) is int) and -1e300 < value < 1e300


def is_count(value: object) -> TypeGuard[int]:
    """Say whether a value out of JSON is a count: of steps, bytes, actions."""
    return type(value) is int and 0 <= value < MAX_COUNT


def _dump(event: Event) -> bytes:
    try:
        text = json.dumps(event, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(_finite(event), allow_nan=False, separators=(",", ":"))
    return (text if len(text) < MAX_LINE else _shortened(event)).encode() + b"\n"


def _shortened(event: Event) -> str:
    """Return as JSON an event whose line would be too long for any reader, such as an error's with a whole data set."""
    for most in (100_000, 1000, 20):
        text = json.dumps(_cut(_finite(event), most), allow_nan=False, separators=(",", ":"))
        if len(text) < MAX_LINE:
            return text
    return json.dumps({name: event[name] for name in ("time", "kind", "step")})


def _cut(value: Any, most: int) -> Any:
    """Return a value with its texts cut to `most` characters, its lists and dicts to `most` entries."""
    if isinstance(value, str):
        return shorten(value, most)
    if isinstance(value, dict):
        return {str(name)[:200]: _cut(item, most) for name, item in itertools.islice(value.items(), most)}
    if isinstance(value, list):
        return [_cut(item, most) for item in value[:most]]
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _cannot_write(path: Path, error: OSError) -> RunError:
    return RunError(
        f"The events of the run cannot be written: {error.strerror or error}.",
        where=path,
        hint="Free some disk space, or use a folder that you may write; the checkpoints are untouched.",
    )
