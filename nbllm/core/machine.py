"""Facts about this machine, as far as this process may use it: cores, memory, limits of a container, GPUs."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGES = ("nbllm", "torch", "transformers", "tokenizers", "datasets", "safetensors", "numpy", "numba")
# Version 1 of Linux's control groups writes "no limit" as a number near 2^63.
_NO_LIMIT = 1 << 60


@functools.cache
def machine_facts() -> dict[str, Any]:
    """Return what this process may use, as plain values for a run's record or a report.

    Keys: processor, architecture, system, cores (that this process may use), memory_bytes (the container's
    limit where that is lower than the machine's memory), gpus (a list of name and memory_bytes).
    """
    return {
        "processor": processor(),
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cores": usable_cores(),
        "memory_bytes": memory_limit(),
        "gpus": gpus(),
    }


@functools.cache
def versions() -> dict[str, str]:
    """Return the version of Python and of each package that a result depends on; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """Return the processor's model name."""
    return cpu_field("model name") or cpu_field("Model") or platform.processor() or platform.machine()


def cpu_field(name: str) -> str:
    """Return the first value of a field of /proc/cpuinfo; empty where there is none."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == name:
                    return value.strip()
    except OSError:
        pass
    return ""


def usable_cores() -> int:
    """Return how many cores this process may use: its affinity, and its container's share of time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _control_groups("cpu") if (quota := _cpu_quota(folder)) is not None]
    return max(1, int(min([cores, *quotas])))


def memory_limit() -> int:
    """Return how many bytes this process may use: the machine's memory, or its container's lower limit."""
    import psutil

    limits = [
        limit
        for folder in _control_groups("memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (limit := _number(folder / name)) is not None and limit < _NO_LIMIT
    ]
    return min([int(psutil.virtual_memory().total), *limits])


def gpus() -> list[dict[str, Any]]:
    """Return the name and memory of each GPU that torch sees."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [{"name": gpu.name, "memory_bytes": gpu.total_memory} for gpu in found]


def _control_groups(
    controller: str, root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> Iterator[Path]:
    """Yield the folders of this process's control group and of all above it: each may set a limit."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        base = root / controller if names else root  # version 1 has a tree a controller, version 2 one tree
        folder = base / path.lstrip("/")
        yield folder
        yield from (above for above in folder.parents if above.is_relative_to(base))


def _cpu_quota(folder: Path) -> float | None:
    """Return how many cores' worth of time a control group may take."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        limit, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        return limit / period_us if limit and period_us and limit > 0 else None
    return None if quota == "max" else int(quota) / int(period)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None
