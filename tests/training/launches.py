"""Starting runs of several processes, and breaking one of their ranks."""

from __future__ import annotations

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


def broken(folder: Path, rank: int, code: str) -> Path:
    """Return a folder that, on PYTHONPATH, runs code when the interpreter of a rank starts."""
    folder.mkdir()
    body = "\n".join(f"    {line}" for line in code.splitlines())
    (folder / "sitecustomize.py").write_text(f"import os\nif os.environ.get('RANK') == '{rank}':\n{body}\n")
    return folder
