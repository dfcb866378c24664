"""The contract of an optimizer that can be steered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from nbllm.core.registry import Registry
from nbllm.runs.settings import Setting


class SteerableOptimizer(torch.optim.Optimizer):
    """An optimizer of torch that declares which of its settings may change while a run goes on.

    A subclass also derives from one of torch's optimizers, is one file in `nbllm/training/optimizers`, and registers
    itself. Its state is tensors alone, by parameter; nothing else outlives a step, so that a run resumes exactly.

    Attributes:
        settings: What may be set, each with range, default and help. The learning rate is not among them: every
            optimizer has it.
    """

    settings: ClassVar[tuple[Setting, ...]] = ()

    def __init__(self, matrices: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        """Make an optimizer of two groups of parameters, the first of which is subject to weight decay.

        Args:
            matrices: Parameters of two dimensions or more.
            others: Biases and the weights of normalizations.
        """
        raise NotImplementedError

    def configure(self, *, lr: float, **values: float) -> None:
        """Set what the next step uses.

        Args:
            lr: The learning rate, the schedule applied.
            values: A value for each of `settings`, by name.
        """
        raise NotImplementedError


def parameter_groups(matrices: Sequence[Tensor], others: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Return the groups as torch takes them, each saying whether its weights decay; empty ones are left out."""
    groups = ({"params": list(matrices), "decays": True}, {"params": list(others), "decays": False})
    return [group for group in groups if group["params"]]


OPTIMIZERS: Registry[type[SteerableOptimizer]] = Registry("optimizer")
