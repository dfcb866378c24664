"""AdamW, in torch's fused form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from nbllm.distributed.sharded_tensors import local_part
from nbllm.runs.settings import Setting
from nbllm.training.optimizers.base import OPTIMIZERS, SteerableOptimizer, parameter_groups

MOMENTS = (
    Setting(name="beta1", low=0.0, high=0.999999, default=0.9, help="AdamW's decay of the first moment."),
    Setting(name="beta2", low=0.0, high=0.999999, default=0.95, help="AdamW's decay of the second moment."),
    Setting(
        name="eps",
        low=0.0,
        low_open=True,
        high=1.0,
        default=1e-8,
        help="AdamW's term that keeps the denominator from zero.",
    ),
)
WEIGHT_DECAY = Setting(
    name="weight_decay", low=0.0, high=10.0, default=0.1, help="Decoupled decay, on matrices only."
)


@OPTIMIZERS.register("adamw")
class AdamW(SteerableOptimizer, torch.optim.AdamW):
    """Adam with weight decay apart from the gradient.

    Source: Loshchilov and Hutter 2017, arXiv:1711.05101, algorithm 2.
    """

    settings = (*MOMENTS, WEIGHT_DECAY)

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        """Make it; see the base class."""
        torch.optim.AdamW.__init__(self, parameter_groups(parameters), fused=True)

    def configure(self, *, lr: float, **values: float) -> None:
        """Set what the next step uses."""
        super().configure(lr=lr, **values)
        for group in self.param_groups:
            group["betas"] = (group["beta1"], group["beta2"])


def step_adamw(
    parameters: Sequence[Tensor], state: Mapping[Tensor, dict[str, Any]], group: Mapping[str, Any]
) -> None:
    """Take AdamW's fused step with those parameters, for an optimizer that leaves some of its own to AdamW.

    Args:
        parameters: Those with a gradient.
        state: By parameter; the moments are made where there are none.
        group: Holds lr, beta1, beta2, eps and weight_decay.
    """
    if not parameters:
        return
    for parameter in parameters:
        own = state[parameter]
        if not own:
            own["step"] = torch.zeros((), device=parameter.device)
            own["exp_avg"], own["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)

    def each(key: str) -> list[Tensor]:
        return [local_part(state[parameter][key]) for parameter in parameters]

    adamw(
        [local_part(parameter) for parameter in parameters],
        [local_part(parameter.grad) for parameter in parameters if parameter.grad is not None],
        each("exp_avg"),
        each("exp_avg_sq"),
        [],
        each("step"),
        fused=True,
        amsgrad=False,
        maximize=False,
        lr=group["lr"],
        beta1=group["beta1"],
        beta2=group["beta2"],
        eps=group["eps"],
        weight_decay=group["weight_decay"],
    )
