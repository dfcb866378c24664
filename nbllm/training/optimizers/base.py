"""The contract of an optimizer that can be steered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from nbllm.core.registry import Registry
from nbllm.runs.settings import Setting


class SteerableOptimizer(torch.optim.Optimizer):
    """An optimizer of torch that declares which of its settings may change while a run goes on.

    A subclass is one file in `nbllm/training/optimizers` and registers itself. It may also derive from one of torch's
    optimizers. Its state is tensors alone, by parameter; nothing else outlives a step, so that a run resumes exactly.
    Parameters may be DTensors: a step of shards is the step of the whole parameters.

    Attributes:
        settings: What may be set, each with range, default and help. The learning rate is not among them: every
            optimizer has it.
        keeps_whole_state: Whether every rank has all of the state of a parameter that is split over ranks.
    """

    settings: ClassVar[tuple[Setting, ...]] = ()
    keeps_whole_state: ClassVar[bool] = False

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        """Make an optimizer.

        Args:
            parameters: What is trained, in float32, by the name that it has in the network.
        """
        torch.optim.Optimizer.__init__(self, parameter_groups(parameters), {})

    def configure(self, *, lr: float, **values: float) -> None:
        """Set what the next step uses.

        Args:
            lr: The learning rate, the schedule applied.
            values: A value for each of `settings`, by name.
        """
        for group in self.param_groups:
            group.update(lr=lr, **values)
            if not group["decays"]:
                group["weight_decay"] = 0.0

    def fits(self, parameter: Tensor, key: str, value: Tensor) -> bool:
        """Return whether `value` can be the state `key` of a parameter, by its shape.

        An optimizer whose state is neither a number nor of the parameter's shape says here what it is.
        """
        return value.ndim == 0 or value.shape == parameter.shape


def parameter_groups(parameters: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Return the parameters as groups of torch's: with `decays` the matrices, without it the vectors.

    Vectors, the biases and the weights of normalizations, are not subject to weight decay. Parameters that are laid
    over different meshes are in different groups, since torch's fused and foreach steps do not mix them.
    """
    groups: dict[tuple[bool, Any], list[Tensor]] = {}
    for parameter in parameters.values():
        key = (parameter.ndim >= 2, getattr(parameter, "device_mesh", None))
        groups.setdefault(key, []).append(parameter)
    return [{"params": group, "decays": decays} for (decays, _), group in groups.items()]


def state_bytes(kind: type[SteerableOptimizer]) -> float:
    """Return how much an optimizer keeps, in bytes for each element of the parameters that it keeps most for."""
    most = 0.0
    for name in ("blocks.0.weight", "embedding.weight"):  # some treat them differently
        parameter = torch.nn.Parameter(torch.zeros(256, 256))
        parameter.grad = torch.zeros_like(parameter)
        optimizer = kind({name: parameter})
        optimizer.configure(lr=0.0, **{setting.name: setting.default or 0.0 for setting in kind.settings})
        optimizer.step()
        held = sum(value.nbytes for value in optimizer.state[parameter].values() if isinstance(value, Tensor))
        most = max(most, held / parameter.numel())
    return most


OPTIMIZERS: Registry[type[SteerableOptimizer]] = Registry("optimizer")
