"""A model's weights and the state of what trains it, of which each rank writes and reads its parts."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from nbllm.core.base_weights import BaseWeights
from nbllm.models.tensor_shards import ADAPTER, MODEL, OBJECTIVE, OPTIMIZER, TensorShards

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from nbllm.lm import LM
    from nbllm.objectives import Objective
    from nbllm.training.optim import Optimizer


def write_description(folder: Path, lm: LM, base: BaseWeights | None) -> None:
    """Write what a checkpoint holds of a model beside its tensors: configuration, tokenizer, generation settings.

    Args:
        folder: To be filled.
        lm: The model.
        base: Where its own weights are, unless they are among the tensors.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
    """
    from nbllm.models.loading import write_sharded_config
    from nbllm.models.quantized import write_quantized

    lm.write_files(folder, weights=False, adapter_weights=False)
    if base is not None:
        base.refer(folder)
    else:
        write_sharded_config(lm.config, folder)
        write_quantized(lm.model, folder)


def held_tensors(
    lm: LM, optimizer: Optimizer, objective: Objective[Any], base: BaseWeights | None
) -> dict[str, Tensor]:
    """Return what a checkpoint holds of this rank, by name: parts of weights and of the optimizer's state.

    Args:
        lm: The model.
        optimizer: What trains it.
        objective: What it is trained for.
        base: Where its own weights are, unless the checkpoint is to hold them.
    """
    from nbllm.models.quantized import weights_by_name

    adapters = names_of_adapters(lm)
    weights = {_full(name, adapters): master.detach() for name, master in optimizer.masters.items()}
    if base is None:
        weights |= {f"{MODEL}{name}": weight for name, weight in weights_by_name(lm.model).items()}
    else:
        weights = {name: weight for name, weight in weights.items() if name.startswith(ADAPTER)}
    state = {f"{OPTIMIZER}{name}": tensor.detach() for name, tensor in optimizer.state().items()}
    return weights | state | {f"{OBJECTIVE}{name}": t for name, t in objective.state_tensors().items()}


def names_of_adapters(lm: LM) -> set[str]:
    """Return the names of the parameters of a model's adapters that are on."""
    return {name for each in lm.adapters if each.state == "on" for name in each.parameters()}


@torch.no_grad()
def read_parts(shards: TensorShards, optimizer: Optimizer, adapters: Collection[str], *, own: bool) -> None:
    """Put back the parts that this rank holds, whatever ranks wrote them and held of them.

    Args:
        shards: The tensors of a checkpoint.
        optimizer: To be filled, with the weights that it trains.
        adapters: The names of adapters' parameters.
        own: Whether the checkpoint holds the model's own weights.

    Raises:
        WeightsError: A tensor is missing, has another shape, or cannot be read.
        UserError: The state is not that of this optimizer.
    """
    masters = optimizer.masters
    targets = {_full(n, adapters): master.detach() for n, master in masters.items() if own or n in adapters}
    state = {}
    for full in shards.names(OPTIMIZER):
        name = full.partition(".")[2]
        if name in masters:
            whole = shards.empty(f"{OPTIMIZER}{full}", "meta")
            divided = not optimizer.inner.keeps_whole_state and whole.ndim == masters[name].ndim
            state[full] = (
                _laid_like(masters[name], whole) if divided else torch.empty_like(whole, device="cpu")
            )
    shards.fill(targets | {f"{OPTIMIZER}{full}": tensor for full, tensor in state.items()})
    optimizer.load_state_tensors(state)


def _full(name: str, adapters: Collection[str]) -> str:
    return f"{ADAPTER if name in adapters else MODEL}{name}"


def _laid_like(parameter: Tensor, whole: Tensor) -> Tensor:
    """Return memory for this rank's part of a parameter's state, which is divided as the parameter is.

    Args:
        parameter: The parameter.
        whole: The whole state, without memory. In the last dimension it may be a fraction of the parameter.
    """
    if not hasattr(parameter, "device_mesh"):
        return torch.empty_like(whole, device=parameter.device)
    split = cast("DTensor", parameter.detach())
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
