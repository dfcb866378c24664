"""Where numbers that are not finite come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from nbllm.objectives.causal_lm import HiddenAndHead, causal_lm_loss

NOTHING = "nothing that could be found again"


def weights_are_finite(weights: Mapping[str, Tensor]) -> bool:
    """Return whether every number in every tensor is finite."""
    return all(
        bool(torch.isfinite(weight.sum())) or bool(torch.isfinite(weight).all())
        for weight in weights.values()
    )


def first_bad_module(model: nn.Module, inputs: Tensor, targets: Tensor) -> str:
    """Name the first module whose output is not finite, or what else is: a weight, the loss, a gradient.

    Args:
        model: A decoder.
        inputs: The batch that went wrong, (batch, position).
        targets: Its targets, (batch, position).
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the weight {name}"
    found: list[str] = []

    def look(name: str) -> object:
        def hook(module: nn.Module, arguments: object, output: object) -> None:
            if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return hook

    handles = [m.register_forward_hook(look(name)) for name, m in model.named_modules() if name]
    try:
        with torch.enable_grad():
            loss = causal_lm_loss(cast(HiddenAndHead, model), inputs, targets)
            if found:
                return f"the module {found[0]}"
            if not torch.isfinite(loss):
                return "the loss"
            loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    for name, parameter in model.named_parameters():
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None and not torch.isfinite(gradient).all():
            return f"the gradient of {name}"
    return NOTHING
