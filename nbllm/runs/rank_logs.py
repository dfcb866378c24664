"""What the ranks of a run have printed: a file a rank, `logs/rank-<n>.txt`, to which each start appends.

Beside them lie what ended a rank (`rank-<n>.json`), and the file and the output of a Slurm job.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from nbllm.core.io import is_link, open_regular
from nbllm.core.terminal import visible
from nbllm.runs.store import PROCESS_LOG

FOLDER = "logs"
NAME = re.compile(r"rank-[0-9]{1,6}\.(txt|json)|job\.sbatch|job-[0-9]{1,12}\.out")
_LOG = re.compile(r"rank-(?P<rank>[0-9]{1,6})\.txt")
END_BYTES = 1 << 14  # of a log that are shown


def log_path(run_folder: Path, rank: int) -> Path:
    """Return the file to which a rank prints."""
    return run_folder / FOLDER / f"rank-{rank}.txt"


def ranks_with_logs(run_folder: Path) -> list[int]:
    """Return the ranks that have a log, in order."""
    folder = run_folder / FOLDER
    if is_link(folder):
        return []
    with contextlib.suppress(OSError):
        return sorted(int(match["rank"]) for name in os.listdir(folder) if (match := _LOG.fullmatch(name)))
    return []


def log_size(run_folder: Path, rank: int) -> int:
    """Return how many bytes a rank has printed."""
    try:
        return log_path(run_folder, rank).lstat().st_size
    except OSError:
        return 0


def log_end(run_folder: Path, rank: int | None) -> str:
    """Return the last lines that a rank has printed, without control characters; "" where it has printed nothing.

    Args:
        run_folder: The run's folder.
        rank: Which one; None: the process of a run that has no ranks.
    """
    path = run_folder / PROCESS_LOG if rank is None else log_path(run_folder, rank)
    try:
        with open_regular(path, follow=False) as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - END_BYTES))
            text = log.read(END_BYTES).decode(errors="replace")
    except OSError:
        return ""
    if size > END_BYTES:
        text = text.partition("\n")[2]  # the first line may be a part of one
    return visible(text)
