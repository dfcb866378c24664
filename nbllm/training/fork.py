"""A fork: a new run that begins at a checkpoint of another, with changed settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nbllm.core.errors import RunError
from nbllm.runs import checkpoint as checkpoints
from nbllm.runs.events import EventReader
from nbllm.runs.store import create, read_record
from nbllm.runs.timeline import Timeline
from nbllm.training.config import TrainConfig
from nbllm.training.settings import initial_values
from nbllm.training.state import TrainState


def fork(path: Path, name: str, *, step: int | None, changes: dict[str, Any]) -> Path:
    """Create a run beside `path` that goes on from one of its checkpoints.

    Args:
        path: The parent's directory.
        name: The new run's name.
        step: The checkpoint's step; `None` is the newest.
        changes: Settings of `TrainConfig` that differ from the parent's as they were at that step.

    Raises:
        RunError: There is no good checkpoint of that step on the run's live line; those there are, are named.
        UserError: A setting is unknown or out of range, or the run would have no step left.
    """
    record = read_record(path)
    on_line = Timeline(EventReader(path).poll()).on_line
    info, problems = checkpoints.newest_good(path, lambda c: on_line(c) and step in (None, c.step))
    if info is None:
        there = sorted({c.step for c in checkpoints.checkpoints(path) if on_line(c)})
        raise RunError(
            "; ".join(problems) or f"There is no checkpoint at step {step} to fork from.",
            where=path,
            mend=f"There are: {', '.join(map(str, there)) or 'none'}.",
        )
    state = TrainState.from_dict(checkpoints.load_state(info.path))
    config = TrainConfig.from_dict({**record["config"], **state.values, **changes})
    if config.steps <= info.step:
        raise RunError(
            f"The fork would end at step {config.steps}, but it begins at {info.step}.",
            where=path,
            mend=f"Fork from an earlier step, or with more: steps={info.step + 100}.",
        )
    new = {
        **record,
        "config": config.to_dict(),
        "parent": {"run": record["name"], "step": info.step},
        "replay": None,
    }
    created = create(path.parent, name, new)
    checkpoints.adopt(info, created, values=initial_values(config), bad_steps=0)
    return created
