"""AdamW, in torch's fused form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nbllm.runs.settings import Setting
from nbllm.training.optimizers.base import OPTIMIZERS, SteerableOptimizer, parameter_groups


@OPTIMIZERS.register("adamw")
class AdamW(SteerableOptimizer, torch.optim.AdamW):
    """Adam with weight decay apart from the gradient.

    Source: Loshchilov and Hutter 2017, arXiv:1711.05101, algorithm 2.
    """

    settings = (
        Setting(name="beta1", low=0.0, high=0.999999, default=0.9, help="AdamW's decay of the first moment."),
        Setting(
            name="beta2", low=0.0, high=0.999999, default=0.95, help="AdamW's decay of the second moment."
        ),
        Setting(
            name="eps",
            low=0.0,
            low_open=True,
            high=1.0,
            default=1e-8,
            help="AdamW's term that keeps the denominator from zero.",
        ),
        Setting(
            name="weight_decay", low=0.0, high=10.0, default=0.1, help="Decoupled decay, on matrices only."
        ),
    )

    def __init__(self, matrices: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        """Make it; see the base class."""
        torch.optim.AdamW.__init__(self, parameter_groups(matrices, others), fused=True)

    def configure(  # type: ignore[override]  # its settings by name
        self, *, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float
    ) -> None:
        """Set what the next step uses."""
        for group in self.param_groups:
            group.update(lr=lr, betas=(beta1, beta2), eps=eps)
            group["weight_decay"] = weight_decay if group["decays"] else 0.0
