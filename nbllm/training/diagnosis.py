"""Find where values that are not finite come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nbllm.distributed.sharded_tensors import local_part
from nbllm.objectives import Batch, Objective

NOTHING = "nothing that could be found again"


def weights_are_finite(weights: Mapping[str, Tensor]) -> bool:
    """Return whether every element of every tensor is finite."""
    return all(
        bool(torch.isfinite(weight.sum())) or bool(torch.isfinite(weight).all())
        for weight in map(local_part, weights.values())
    )


def first_bad_module(
    network: nn.Module, objective: Objective[Any], batch: Batch, weights: Mapping[str, Tensor] | None = None
) -> str:
    """Name the first module whose output is not finite, or a weight, the loss or a gradient that is not.

    Args:
        network: What was trained.
        objective: What it was trained for.
        batch: The batch that went wrong, on the network's device.
        weights: What it computes with, by name, where it holds not all of it at once; None: its parameters.
    """
    for name, parameter in (dict(network.named_parameters()) if weights is None else weights).items():
        if not torch.isfinite(parameter).all():
            return f"the weight {name}"
    found: list[str] = []

    def look(name: str) -> object:
        def hook(module: nn.Module, arguments: object, output: object) -> None:
            if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return hook

    handles = [m.register_forward_hook(look(name)) for name, m in network.named_modules() if name]
    try:
        with torch.enable_grad():
            loss = objective.loss(network, batch)[0]
            if found:
                return f"the module {found[0]}"
            if not torch.isfinite(loss):
                return "the loss"
            loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    for name, parameter in network.named_parameters():
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None and not torch.isfinite(gradient).all():
            return f"the gradient of {name}"
    return NOTHING
