"""Which run is meant: a handle, a run's folder, or its name where runs are kept."""

from __future__ import annotations

import os
from pathlib import Path

from nbllm.core.errors import RunError, nearest
from nbllm.core.io import expand_user
from nbllm.runs.recorded import RecordedRun
from nbllm.runs.store import RECORD, run_folders, what_there_is

FOLDER = "runs"  # where runs are kept unless another folder is named


def locate(run: RecordedRun | Path | str, folder: Path | str = FOLDER) -> Path:
    """Return the folder of a run.

    Args:
        run: A handle of it, its name in `folder`, or its folder. A name in `folder` comes before a path.
        folder: Where runs are kept.

    Raises:
        RunError: There is no such run; the nearest name is given.
    """
    if isinstance(run, RecordedRun):
        return run.path
    if not isinstance(run, (str, os.PathLike)):
        raise RunError(
            f"{type(run).__name__} is not a run.",
            hint=f"Give a run, its folder, or its name in {folder}: nb.runs() lists them.",
        )
    found = find(run, folder)
    if found is not None:
        return found
    place = expand_user(run)
    is_name = len(place.parts) == 1
    known = [path.name for path in run_folders(folder)] if is_name else []
    raise RunError(
        f"There is no run {str(run)!r}." if is_name else "There is no run here.",
        where=folder if is_name else place,
        hint=nearest(str(run), known) if known and not run_folders(place) else what_there_is(place),
    )


def find(run: Path | str, folder: Path | str = FOLDER) -> Path | None:
    """Return the folder of the run of that name in `folder`, or at that path; `None` where there is none."""
    place = expand_user(run)
    inside = expand_user(folder) / place
    candidates = (inside, place) if len(place.parts) == 1 else (place, inside)
    return next((path for path in candidates if os.path.exists(path / RECORD)), None)
