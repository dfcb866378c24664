"""An optimizer's step of parameters that are split over ranks is the step of the whole parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nbllm.training.optimizers import OPTIMIZERS
from tests.distributed.pool import Pool

KINDS = ["adamw", "adamw_8bit", "adafactor", "lion", "muon"]
SHAPES = {
    "embedding.weight": (65, 128), "blocks.0.up.weight": (96, 128), "blocks.0.down.weight": (128, 96),
    "blocks.1.up.weight": (96, 128), "blocks.0.up.bias": (96,), "blocks.0.scale": (3,),
}  # fmt: skip


def _stepped(kind: str, placed: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """Take steps with gradients that depend on the name and the step alone; return the whole weights."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    optimizer = OPTIMIZERS[kind](placed)
    for step in range(3):
        rng = torch.Generator().manual_seed(step)
        for parameter in placed.values():
            gradient = torch.randn(parameter.shape, generator=rng)
            if isinstance(parameter, DTensor):
                gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
            parameter.grad = gradient
        settings = {setting.name: setting.default for setting in OPTIMIZERS[kind].settings}
        optimizer.configure(lr=1e-2, **settings)
        optimizer.step()
    return {name: (p.full_tensor() if isinstance(p, DTensor) else p).detach() for name, p in placed.items()}


def _whole() -> dict[str, nn.Parameter]:
    rng = torch.Generator().manual_seed(9)
    return {name: nn.Parameter(torch.randn(shape, generator=rng)) for name, shape in SHAPES.items()}


def _differences(kind: str, mesh_shape: tuple[int, ...], by_rows: bool) -> dict[str, float]:
    """Return the largest difference by parameter between the split and the whole step, after three of them."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", mesh_shape)
    split: dict[str, Any] = {}
    for name, value in _whole().items():
        placements: list[Any] = [Replicate() if value.ndim == 1 else Shard(0 if by_rows else 1)]
        placements = [Replicate()] * (len(mesh_shape) - 1) + placements
        split[name] = nn.Parameter(distribute_tensor(value.detach(), mesh, placements))
    split["blocks.0.scale"] = _whole()["blocks.0.scale"]  # one that no plan splits
    after, expected = _stepped(kind, split), _stepped(kind, _whole())
    return {name: (after[name] - expected[name]).abs().max().item() for name in expected}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by_rows", [True, False])
def test_a_step_of_rows_or_columns_is_the_step_of_the_whole(
    two_ranks: Pool, kind: str, by_rows: bool
) -> None:
    for differences in two_ranks(_differences, kind, (2,), by_rows):
        exact = kind in ("adamw", "lion") or (kind == "adamw_8bit" and by_rows)
        # In 8 bits, moments split across a block stay in float32.
        most = 0.0 if exact else 3e-3 if kind == "adamw_8bit" else 1e-6
        assert max(differences.values()) <= most


def _fully_sharded(kind: str, tensor_parallel: bool) -> float:
    """Return the largest difference after steps under FSDP2, with tensor parallelism beside it or without."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    def model() -> nn.Module:
        torch.manual_seed(3)
        block = nn.ModuleDict({"up": nn.Linear(128, 96), "down": nn.Linear(96, 128)})
        block.forward = lambda x: block["down"](block["up"](x).relu())  # type: ignore[method-assign]
        return nn.Sequential(nn.Embedding(65, 128), nn.Sequential(block))

    split = model()
    names = ["embedding", "blocks"]
    if tensor_parallel:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("shard", "tensor"))
        plan: dict[str, Any] = {"1.0.up": ColwiseParallel(), "1.0.down": RowwiseParallel()}
        parallelize_module(split, mesh["tensor"], plan)
        shard_mesh = mesh["shard"]
    else:
        shard_mesh = init_device_mesh("cpu", (2,))
    fully_shard(split[1], mesh=shard_mesh)
    fully_shard(split, mesh=shard_mesh)
    results = []
    for network in (split, model()):
        parameters = {".".join([names[int(name[0])], name[2:]]): p for name, p in network.named_parameters()}
        optimizer = OPTIMIZERS[kind](parameters)
        for step in range(3):
            tokens = torch.randint(65, (4, 8), generator=torch.Generator().manual_seed(step))
            (network(tokens) - 1).square().mean().backward()
            settings = {setting.name: setting.default for setting in OPTIMIZERS[kind].settings}
            optimizer.configure(lr=1e-3, **settings)
            optimizer.step()
            optimizer.zero_grad()
        results.append([p.full_tensor() if hasattr(p, "full_tensor") else p for p in parameters.values()])
    return max((a - b).abs().max().item() for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_steps_under_fsdp_equal_those_of_one_process(two_ranks: Pool, kind: str) -> None:
    assert max(two_ranks(_fully_sharded, kind, False)) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_steps_under_fsdp_and_tensor_parallelism_equal_those_of_one_process(
    four_ranks: Pool, kind: str
) -> None:
    most = 1e-3 if kind == "adamw_8bit" else 1e-5
    assert max(four_ranks(_fully_sharded, kind, True)) < most
