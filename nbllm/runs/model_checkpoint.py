"""Which checkpoint of a run is opened as a model."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from nbllm.core.errors import UserError, WeightsError
from nbllm.core.io import expand_user
from nbllm.runs import locating
from nbllm.runs.checkpoint import CheckpointInfo, checkpoints, newest_good
from nbllm.runs.recorded import RecordedRun
from nbllm.runs.store import run_folders, what_there_is
from nbllm.runs.timeline import read_timeline

MODEL = "config.json"  # the file that a model directory has


def run_meant(path: Path | str | RecordedRun) -> Path | None:
    """Return the folder of the run that is to be opened; `None` where a model is.

    Raises:
        UserError: It is neither a path nor a run.
    """
    if isinstance(path, RecordedRun):
        return path.path
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(
            f"{type(path).__name__} is neither a path nor a run.",
            hint="nb.load takes a folder, a file, a run or a name.",
        )
    place = expand_user(path)
    if os.path.isfile(place) or os.path.exists(place / MODEL):
        return None
    return locating.find(place)


def check_no_folder_of_runs(place: Path) -> None:
    """Check that a path is not that of a folder of runs, or of a run that is not in one.

    Raises:
        WeightsError: It is; the message names the runs, or the nearest one.
    """
    if (place / MODEL).exists():
        return
    if run_folders(place) or (not place.exists() and run_folders(place.parent)):
        raise WeightsError("There is no model or run here.", where=place, hint=what_there_is(place))


def names_of_runs() -> list[str]:
    """Return the names of the runs where runs are kept."""
    return [path.name for path in run_folders(locating.FOLDER)]


def find(run: Path, step: int | None) -> CheckpointInfo:
    """Return a run's newest good checkpoint, or that of a step; warn where a newer one is damaged.

    Raises:
        WeightsError: There is none, or it holds no model.
    """
    # A checkpoint that a rewind went back beyond is no longer part of the run.
    on_branch = read_timeline(run).on_branch
    info, problems = newest_good(run, lambda each: on_branch(each) and step in (None, each.step))
    if info is None:
        there = sorted({each.step for each in checkpoints(run) if on_branch(each)})
        if step is not None and there and not problems:
            raise WeightsError(
                f"The run {run.name!r} has no checkpoint at step {step}.",
                where=run,
                hint=f"There are: {', '.join(map(str, there))}.",
            )
        raise WeightsError(
            f"No checkpoint of the run is whole: {problems[0]}" if problems else "The run has no checkpoint.",
            where=run,
            hint="Let the run save one first: run.save().",
        )
    if problems:
        text = f"Opened the older checkpoint {info.name}, for a newer one is damaged: {'; '.join(problems)}"
        warnings.warn(text, stacklevel=3)
    if not (info.path / MODEL).is_file():
        raise WeightsError(
            f"The checkpoints of the run {run.name!r} hold no model to open: the loop that trained it saves a "
            "state of its own.",
            where=info.path,
            hint="Save the model in that loop: LM.save(folder), or save_pretrained(folder).",
        )
    return info
