"""Starting runs of several processes, and breaking one of their ranks."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

PATIENCE = 90.0  # seconds: two processes import torch, on a slow machine


def wait_until(test, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not (found := test()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def ranks_of(run) -> dict[int, psutil.Process]:
    """Return the processes of a run's ranks that live now."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "nbllm.training.worker" in words and str(run.path) in words:
            try:
                found[int(process.environ()["RANK"])] = process
            except (psutil.Error, KeyError):
                continue
    return found


def processes_of(run) -> list[psutil.Process]:
    """Return all processes that train a run: supervisor and ranks."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(run.path) in words and any(word.startswith("nbllm.training.") for word in words):
            found.append(process)
    return found


def python_path(folder: Path, code: str, rank: int | None = None) -> str:
    """Return a PYTHONPATH by which every interpreter runs code when it starts, or that of one rank alone."""
    folder.mkdir()
    body = "\n".join(f"    {line}" for line in code.splitlines())
    whom = "True" if rank is None else f"os.environ.get('RANK') == '{rank}'"
    (folder / "sitecustomize.py").write_text(f"import os\nif {whom}:\n{body}\n")
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
