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
    """Create a run beside `path` that goes on from its newest good checkpoint at or before `step`.

    Args:
        path: The parent's directory.
        name: The new run's name.
        step: Where to branch off; `None` is the newest checkpoint.
        changes: Settings of `TrainConfig` that differ from the parent's as they were at that step.

    Raises:
        RunError: No good checkpoint is there, or the name is taken.
        UserError: A setting is unknown or out of range, or the run would have no step left.
    """
    record = read_record(path)
    on_line = Timeline(EventReader(path).poll()).on_line
    info, problems = checkpoints.newest_good(path, lambda c: on_line(c) and (step is None or c.step <= step))
    if info is None:
        raise RunError(
            f"There is no good checkpoint at or before step {step}.", where=path, mend="; ".join(problems)
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
