"""A model's weights and its optimizer's state, of which each rank writes and reads its parts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from nbllm.models.tensor_shards import FOLDER, MODEL, OPTIMIZER, TensorShards

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from nbllm.lm import LM
    from nbllm.training.optim import Optimizer


def write_description(folder: Path, lm: LM) -> None:
    """Write what a checkpoint holds of a model beside its tensors: configuration, tokenizer, generation settings.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    from nbllm.models.loading import write_sharded_config

    lm.write_files(folder, weights=False)
    write_sharded_config(lm.config, folder)


def held_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the weights and the optimizer's state that this rank holds, by their names in a checkpoint."""
    weights = {f"{MODEL}{name}": master.detach() for name, master in optimizer.masters.items()}
    return weights | {f"{OPTIMIZER}{name}": state for name, state in optimizer.state_tensors().items()}


@torch.no_grad()
def read_parts(folder: Path, optimizer: Optimizer) -> None:
    """Put back the parts that this rank holds, whatever ranks wrote them and held of them.

    Raises:
        WeightsError: A tensor is missing, has another shape, or cannot be read.
        UserError: The state is not that of this optimizer.
    """
    shards = TensorShards(folder / FOLDER)
    shards.fill({f"{MODEL}{name}": master.detach() for name, master in optimizer.masters.items()})
    state = {}
    for full in shards.shapes:
        _, _, name = full.removeprefix(OPTIMIZER).partition(".")
        if full.startswith(OPTIMIZER) and name in optimizer.masters:
            state[full] = _laid_like(optimizer.masters[name], shards.empty(full, "meta"))
    shards.fill(state)
    optimizer.load_state_tensors({full.removeprefix(OPTIMIZER): tensor for full, tensor in state.items()})


def _laid_like(parameter: Tensor, whole: Tensor) -> Tensor:
    """Return memory for this rank's part of a parameter's state, divided as the parameter is if it has its dimensions.

    Args:
        parameter: The parameter.
        whole: The whole state, without memory. In the last dimension it may be a fraction of the parameter.
    """
    split = cast("DTensor", parameter.detach()) if hasattr(parameter, "device_mesh") else None
    if split is None or whole.ndim != parameter.ndim:
        return torch.empty_like(whole, device="cpu" if whole.ndim == 0 else parameter.device)
    local = split.to_local()
    columns = local.shape[-1] * whole.shape[-1] // parameter.shape[-1]
    part = local.new_empty((*local.shape[:-1], columns), dtype=whole.dtype)
    return type(split).from_local(
        part,
        split.device_mesh,
        split.placements,
        run_check=False,
        shape=whole.shape,
        stride=whole.stride(),
    )
