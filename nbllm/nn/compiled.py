"""Modules that `torch.compile` has wrapped: what is inside, and parameters by the names that they have unwrapped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

_INSIDE = "_orig_mod"  # by which torch's wrapper holds the module


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside `torch.compile`'s wrapper, whose parameters are the wrapper's; any other as it is."""
    while (inside := module._modules.get(_INSIDE)) is not None:
        module = inside
    return module


def plain_name(name: str) -> str:
    """Return a parameter's name without the wrappers, wherever in a module they are."""
    return ".".join(part for part in name.split(".") if part != _INSIDE)


def parameters_by_name(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return a module's parameters by the names that they have unwrapped."""
    return {plain_name(name): parameter for name, parameter in module.named_parameters()}


def state_by_name(module: Any) -> Any:
    """Return `state_dict()` of anything that has one; of a module, by the names that its entries have unwrapped."""
    state = module.state_dict()
    if not isinstance(module, nn.Module):
        return state
    return {plain_name(name): value for name, value in state.items()}


def load_state_by_name(module: Any, state: Mapping[str, Any]) -> None:
    """Give back what `state_by_name` returned, whether or not the module was wrapped when it did."""
    if isinstance(module, nn.Module):
        ours = {plain_name(name): name for name in module.state_dict()}
        state = {ours.get(name, name): value for name, value in state.items()}
    module.load_state_dict(state)
