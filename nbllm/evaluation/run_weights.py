"""Whether a model has the weights of a run: a report must not title one model's figures with another's run."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch

from nbllm.core.errors import UserError, WeightsError
from nbllm.models.loading import CONFIG, read_parameters
from nbllm.models.peft.checkpoint import read_tensors
from nbllm.nn.compiled import parameters_by_name
from nbllm.training.launcher import is_training

if TYPE_CHECKING:
    from pathlib import Path

    from nbllm.lm import LM
    from nbllm.runs.checkpoint import CheckpointInfo
    from nbllm.runs.run import Run


def weights_step(lm: LM, run: Run) -> int | None:
    """Return the step of the run whose weights a model has; `None` where that cannot be told.

    It cannot where the run kept no model to compare with, or where this kernel is training the model just now.

    Args:
        lm: The model.
        run: The run that is said to have made it.

    Raises:
        UserError: The model's weights are those of no checkpoint of the run; or those that it began with, which are as
            much another run's, and the model was not opened from the run.
    """
    if run.is_live and is_training(run.path, lm):
        return None
    kept = [info for info in run.checkpoints if (info.path / CONFIG).is_file()]
    if not kept:
        return None
    first = min(kept, key=lambda info: (info.step, info.sequence))
    info = next((info for info in reversed(kept) if _has_weights(lm, info.path)), None)
    if info is None:
        what = (
            f"This model does not have the weights of the run {run.name!r}: they are those of none of its "
            f"checkpoints ({_steps(kept)})."
        )
    elif info is first and run.step > info.step and not _is_opened_from(lm, run):
        what = (
            f"This model has the weights that the run {run.name!r} began with at step {info.step:,}, not those that it "
            f"has at step {run.step:,}."
        )
    else:
        return info.step
    raise UserError(
        what,
        where=run.path,
        hint="nb.evaluate(run) measures the run's own weights, which nb.load(run) opens; "
        "nb.evaluate(lm) measures this model and says nothing of a run.",
    )


def _is_opened_from(lm: LM, run: Run) -> bool:
    """Say whether the model was opened from the run or one of its checkpoints, or trained by it."""
    return lm.origin == run.name or lm.origin.startswith((f"{run.name} at step ", f"{run.name}/"))


def _has_weights(lm: LM, directory: Path) -> bool:
    """Say whether a model directory holds the model's weights and adapters, rounded to the dtype that the model has."""
    own = parameters_by_name(lm.model)
    num_equal = 0
    with lm.lock, torch.no_grad():
        try:
            for name, stored in itertools.chain(read_parameters(directory), read_tensors(directory).items()):
                parameter = own.get(name)
                if parameter is None or parameter.shape != stored.shape:
                    return False
                if not torch.equal(parameter.cpu(), stored.to(parameter.dtype)):
                    return False
                num_equal += 1
        except (WeightsError, OSError):  # damaged, or deleted for a newer one meanwhile
            return False
    return num_equal == len(own)


def _steps(kept: list[CheckpointInfo]) -> str:
    steps = sorted({info.step for info in kept})
    shown = ", ".join(f"{step:,}" for step in steps[-8:])
    return f"steps {'..., ' if len(steps) > 8 else ''}{shown}" if len(steps) > 1 else f"step {shown}"
