"""Which process trains, and whether it still does: after a reboot, in a container, on another machine."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROC = Path("/proc")


def this_process() -> dict[str, Any]:
    """Return what a `start` event says of its process: `pid`, `pid_started`, `host`, `machine`."""
    pid = os.getpid()
    return {"pid": pid, "pid_started": _own_start(pid), "host": socket.gethostname(), "machine": _machine()}


def parent_process() -> dict[str, Any]:
    """Return the same of the process that started this one."""
    pid = os.getppid()
    return {**this_process(), "pid": pid, "pid_started": _started(pid)}


def is_alive(process: Mapping[str, Any]) -> bool | None:
    """Say whether the process that `this_process` described runs; `None` when it cannot be seen from here.

    A process id alone proves nothing, since ids are reused: the start time has to agree. A process that was
    killed but not yet collected by its parent counts as gone.
    """
    if not same_machine(process):
        return None
    pid = process.get("pid")
    if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 0:
        return False
    if pid == os.getpid() and process.get("pid_started") == _own_start(pid):
        return True  # this is it
    import psutil

    try:
        found = psutil.Process(pid)
        if found.status() == psutil.STATUS_ZOMBIE:
            return False
        started = process.get("pid_started")
        if not isinstance(started, (int, float)):
            return False
        # Two measures: seconds since boot, which setting the clock does not move, and psutil's wall time.
        return abs(started - _started(pid)) < 0.05 or abs(started - found.create_time()) < 2
    except (psutil.NoSuchProcess, OverflowError):
        return False
    except psutil.AccessDenied:
        return True


def same_machine(process: Mapping[str, Any]) -> bool:
    """Say whether the process ids of `process` mean the same here: same boot, same process-id namespace."""
    theirs, ours = process.get("machine"), _machine()
    if theirs and ours:
        return bool(theirs == ours)
    return process.get("host") == socket.gethostname()


def same_kernel(process: Mapping[str, Any]) -> bool:
    """Say whether `process` ran under the kernel that runs us, whose file locks it and we share."""
    theirs, ours = process.get("machine"), _machine()
    if isinstance(theirs, str) and theirs and ours:
        return theirs.partition("/")[0] == ours.partition("/")[0]
    return process.get("host") == socket.gethostname()


def describe(process: Mapping[str, Any]) -> str:
    """Return "process 123 on host" for messages."""
    return f"process {process.get('pid', '?')} on {process.get('host', 'an unknown host')}"


@functools.cache
def _machine() -> str:
    """Return boot and process-id namespace, or "" where the system does not tell them."""
    with contextlib.suppress(OSError):
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink(PROC / 'self/ns/pid')}"
    return ""


@functools.lru_cache(maxsize=1)
def _own_start(pid: int) -> float:
    """Return when this process started; by its id, since a fork of it is another."""
    return _started(pid)


def _started(pid: int) -> float:
    """Return when the process started: seconds since boot on Linux, else seconds since 1970."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return 0.0
