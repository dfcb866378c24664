"""The weights in float32, whatever a network computes in."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn


class MasterWeights:
    """A network's parameters in float32, which the optimizer updates.

    In float32 they are the network's own. In another dtype each has a float32 master: gradients are added to the
    master's, and after the step the parameter is a rounded copy of it, since a step smaller than the spacing of
    bfloat16 would otherwise be lost.

    Args:
        network: What is trained; its parameters become `dtype`.
        dtype: What it computes in.

    Attributes:
        are_copies: Whether they are not the network's own.
        working: What the network computes with, by name.
        parameters: The same in float32.

    Source: Micikevicius et al. 2017, arXiv:1710.03740, section 3.1 (master weights).
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        self.are_copies = dtype != torch.float32
        copies: dict[str, nn.Parameter] = {}
        if self.are_copies:  # made before the network is rounded
            copies = {
                name: nn.Parameter(parameter.detach().to(torch.float32, copy=True))
                for name, parameter in network.named_parameters()
            }
        if any(parameter.dtype != dtype for parameter in network.parameters()):
            network.to(dtype)
        self.working = dict(network.named_parameters())
        self.parameters = copies or self.working

    def gradient(self, name: str) -> Tensor | None:
        """Return the whole gradient, or this rank's part of it where the network's parameter is a part."""
        return self.parameters[name].grad

    def set_gradient(self, name: str, gradient: Tensor | None) -> None:
        """Replace a gradient."""
        self.parameters[name].grad = gradient

    def take_gradients(self, names: Collection[str] | None = None) -> None:
        """After a backward pass: add gradients to the masters' and drop them.

        Args:
            names: Of these parameters; None: of all.
        """
        if not self.are_copies:
            return
        for name in self.working if names is None else names:
            parameter, known = self.working[name], self.gradient(name)
            if parameter.grad is None:
                continue
            if known is None:
                self.set_gradient(name, parameter.grad.float())
            else:
                known += parameter.grad
            parameter.grad = None

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the parameters."""
        if self.are_copies:
            for name, parameter in self.working.items():
                parameter.copy_(self.parameters[name])

    def freeze(self, names: Collection[str]) -> None:
        """Freeze just the parameters of these names."""
        for name, parameter in self.working.items():
            frozen = name in names
            parameter.requires_grad_(not frozen)
            if frozen:
                parameter.grad = None
                self.parameters[name].grad = None

    def drop_gradients(self) -> None:
        """Drop all gradients."""
        for parameters in (self.working, self.parameters):
            for parameter in parameters.values():
                parameter.grad = None

    def swapped_in(self) -> dict[str, Tensor]:
        """Let the network hold the masters; return what it held, for `put_back`."""
        held = {name: parameter.data for name, parameter in self.working.items()}
        for name, parameter in self.working.items():
            parameter.data = self.parameters[name].data
        return held

    def put_back(self, held: dict[str, Tensor]) -> None:
        """Undo `swapped_in`."""
        for name, parameter in self.working.items():
            parameter.data = held[name]
