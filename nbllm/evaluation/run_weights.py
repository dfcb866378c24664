"""Whether a model has the weights of a run: a report must not title one model's figures with another's run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nbllm.core.errors import UserError, WeightsError
from nbllm.models.loading import CONFIG, read_parameters
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
        UserError: The model's weights are those of no checkpoint of the run.
    """
    if run.is_live and is_training(run.path, lm):
        return None
    kept = [info for info in run.checkpoints if (info.path / CONFIG).is_file()]
    if not kept:
        return None
    for info in reversed(kept):
        if _has_weights(lm, info.path):
            return info.step
    raise UserError(
        f"This model does not have the weights of the run {run.name!r}: they are those of none of its "
        f"checkpoints ({_steps(kept)}).",
        where=run.path,
        hint="nb.evaluate(run) measures the run's own weights, which nb.load(run) opens; "
        "nb.evaluate(lm) measures this model and says nothing of a run.",
    )


def _has_weights(lm: LM, directory: Path) -> bool:
    """Say whether a model directory holds the model's weights, rounded to the dtype that the model has."""
    own = dict(lm.model.named_parameters())
    num_equal = 0
    with lm.lock, torch.no_grad():
        try:
            for name, stored in read_parameters(directory):
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
