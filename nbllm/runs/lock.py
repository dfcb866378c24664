"""One trainer at a time on a run."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

import filelock

from nbllm.core.errors import RunError
from nbllm.core.io import read_json, write_json
from nbllm.runs.events import event_files
from nbllm.runs.process import describe, same_kernel, this_process

LOCK = "trainer.lock"
HOLDER = "trainer.json"
MAX_HOLDER = 1 << 16  # bytes
HANDOVER_SECONDS = 10.0  # a trainer that has written its last event still holds the run for a moment
PROBE = 0.25  # seconds that a trainer tries at least, since `is_held` holds the lock for a moment
SILENCE = 30.0  # seconds without an event after which a trainer on another machine counts as lost
_held: set[Path] = set()
_guard = threading.Lock()


class TrainerLock:
    """Held by the process that trains a run, as long as it does; when it dies, the system lets go.

    Args:
        run_folder: The run's folder.
        timeout: Seconds to wait for another to let go.
    """

    def __init__(self, run_folder: Path | str, timeout: float = 0.0) -> None:
        self.folder = Path(run_folder).resolve()
        self.timeout = timeout
        # thread_local=False: taken in one thread, released in another.
        self._said: dict[str, Any] = {}  # what `HOLDER` says while it is held
        self._lock = filelock.FileLock(self.folder / LOCK, thread_local=False)

    def acquire(self) -> TrainerLock:
        """Take the lock.

        Raises:
            RunError: Another trainer has it (the message names process and machine), or the folder cannot be
                written.
        """
        # Two locks of one process on one path meet here: filelock's own answer depends on the thread.
        deadline = time.monotonic() + self.timeout
        while True:
            with _guard:
                if self.folder not in _held:
                    _held.add(self.folder)
                    break
            if time.monotonic() >= deadline:
                raise self._taken()
            time.sleep(0.02)
        try:
            if not self.folder.is_dir():  # which filelock would make
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder))
            self._lock.acquire(timeout=max(PROBE, deadline - time.monotonic()), poll_interval=0.02)
            self._check_elsewhere()
            self._said = {**this_process(), "since": time.time()}
            write_json(self.folder / HOLDER, self._said)
        except BaseException as error:
            self._let_go()
            if isinstance(error, filelock.Timeout):
                raise self._taken() from None
            if isinstance(error, (OSError, NotImplementedError)):
                raise RunError(
                    f"The run's folder cannot be locked: {getattr(error, 'strerror', None) or error}.",
                    where=self.folder,
                    hint="You need the right to write there, and some disk space.",
                ) from error
            raise
        return self

    def _check_elsewhere(self) -> None:
        """Refuse where the lock may not reach: a shared disk need not carry locks from machine to machine."""
        holder = holder_of(self.folder)
        if holder is None or same_kernel(holder):
            return
        files = event_files(self.folder)
        silent = time.time() - files[-1].stat().st_mtime if files else SILENCE
        if abs(silent) < SILENCE:
            raise RunError(
                f"{self.folder.name} seems to be trained by {describe(holder)}, which wrote {silent:.0f} s ago.",
                where=self.folder,
                hint=f"If that trainer is gone, or this is a copy, try again in {SILENCE:.0f} s.",
            )

    def release(self) -> None:
        """Let go; without effect when not held."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                if holder_of(self.folder) == self._said:  # the folder may be another run's by now
                    (self.folder / HOLDER).unlink(missing_ok=True)
            self._let_go()

    def _let_go(self) -> None:
        with contextlib.suppress(OSError):
            self._lock.release(force=True)
        with _guard:
            _held.discard(self.folder)

    def _taken(self) -> RunError:
        holder = holder_of(self.folder)
        who = describe(holder) if holder else "another process"
        return RunError(
            f"{self.folder.name} is being trained by {who}.",
            where=self.folder,
            hint="Steer it with nb.attach(path), or stop it first; fork() trains a copy beside it.",
        )

    def __enter__(self) -> TrainerLock:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def holder_of(run_folder: Path | str) -> dict[str, Any] | None:
    """Return what the trainer that took the lock last said of itself."""
    with contextlib.suppress(OSError, ValueError):
        value = read_json(Path(run_folder) / HOLDER, MAX_HOLDER, follow=False)
        if isinstance(value, dict):
            return value
    return None


def is_held(run_folder: Path | str) -> bool | None:
    """Say whether a process of this machine holds the lock of the run; `None` where that cannot be told."""
    if held_here(run_folder):
        return True
    try:
        import fcntl
    except ImportError:
        return None
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(Path(run_folder) / LOCK, flags)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return True if error.errno in (errno.EACCES, errno.EAGAIN) else None
    finally:
        os.close(descriptor)
    return False


def held_here(run_folder: Path | str) -> bool:
    """Say whether this process holds the lock of the run."""
    folder = Path(run_folder)
    return folder in _held or folder.resolve() in _held
