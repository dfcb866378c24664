"""Gradients of weights that wait: a backward pass without them is shorter, and they fill the bubble of a pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from nbllm.nn.linear import Linear, linear


class WeightGradients:
    """What the linear layers of a network still have to add to the gradients of their weights.

    Every `Linear` of the network becomes a `WaitingLinear`, in place; what other modules have is computed at once.
    (torch can split any backward pass, but fails where several weights enter a stage's stream before its input does, as
    the first ones of a decoder do that attends to an encoder.)

    Args:
        network: The network.

    Source: Qi et al. 2023, arXiv:2401.10241, section 2.
    """

    def __init__(self, network: nn.Module) -> None:
        self._waiting: list[tuple[Linear, Tensor, Tensor]] = []
        for module in network.modules():
            if type(module) is Linear:
                module.__class__ = WaitingLinear
                cast(WaitingLinear, module).queue = self._waiting

    def taken(self) -> Callable[[], None]:
        """Return a function that adds to the gradients what has come to wait since this was called last."""
        waiting = list(self._waiting)
        self._waiting.clear()

        def add() -> None:
            for layer, x, grad in waiting:
                with torch.no_grad():
                    found = linear(grad.t(), x.t()).to(layer.weight.dtype)
                layer.weight.backward(found)  # as a backward pass adds it, with whatever waits for a gradient
            waiting.clear()

        return add


class WaitingLinear(Linear):
    """A linear layer whose backward pass leaves the gradient of its weight to be computed later.

    Attributes:
        queue: Where it is left: the layer, (token, input) what it has read, and (token, output) its gradient.
    """

    queue: list[tuple[Linear, Tensor, Tensor]]

    def forward(self, x: Tensor) -> Tensor:
        """Return x weight^T + bias."""
        out: Tensor = _Waiting.apply(x, self.weight, self.bias, self)
        return out


class _Waiting(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: WaitingLinear) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.layer = layer
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        if wants_weight:
            ctx.layer.queue.append((ctx.layer, x.reshape(-1, x.shape[-1]), rows))
        return (
            linear(grad, weight.t()) if wants_x else None,
            None,
            rows.sum(0).to(weight.dtype) if wants_bias else None,
            None,
        )
