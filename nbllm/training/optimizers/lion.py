"""Lion: the sign of a momentum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nbllm.distributed.sharded_tensors import local_part
from nbllm.runs.settings import Setting
from nbllm.training.optimizers.base import OPTIMIZERS, SteerableOptimizer

_AT_ONCE = 1 << 24  # elements: few calls for many small tensors, little scratch memory for large ones


@OPTIMIZERS.register("lion")
class Lion(SteerableOptimizer):
    """Steps of one size for every element, along the sign of a momentum: 4 bytes of state for each.

    Since every element moves by the learning rate, that is a third to a tenth of AdamW's, and the weight decay as many
    times larger.

    Source: Chen et al. 2023, arXiv:2302.06675, algorithm 2.
    """

    settings = (
        Setting(
            name="beta1", low=0.0, high=0.999999, default=0.9, help="Lion's share of the momentum in a step."
        ),
        Setting(name="beta2", low=0.0, high=0.999999, default=0.99, help="Lion's decay of the momentum."),
        Setting(
            name="weight_decay", low=0.0, high=10.0, default=0.3, help="Decoupled decay, on matrices only."
        ),
    )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure is called
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for some in _batches([each for each in group["params"] if each.grad is not None]):
                self._update(some, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if "exp_avg" not in self.state[parameter]:
                self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
        weights = [local_part(parameter) for parameter in parameters]
        gradients = [local_part(parameter.grad) for parameter in parameters if parameter.grad is not None]
        momenta = [local_part(self.state[parameter]["exp_avg"]) for parameter in parameters]
        update = torch._foreach_mul(momenta, group["beta1"])
        torch._foreach_add_(update, gradients, alpha=1 - group["beta1"])
        torch._foreach_sign_(update)
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, update, alpha=-group["lr"])
        torch._foreach_mul_(momenta, group["beta2"])
        torch._foreach_add_(momenta, gradients, alpha=1 - group["beta2"])


def _batches(parameters: list[Tensor]) -> list[list[Tensor]]:
    out: list[list[Tensor]] = [[]]
    elements = 0
    for parameter in parameters:
        elements += parameter.numel()
        if elements > _AT_ONCE and out[-1]:
            out.append([])
            elements = parameter.numel()
        out[-1].append(parameter)
    return out if parameters else []
