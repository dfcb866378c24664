"""Muon: a momentum made orthogonal, for the matrices of the blocks; AdamW for the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nbllm.distributed.sharded_tensors import local_part, placed_like, whole_tensor
from nbllm.runs.settings import Setting
from nbllm.training.optimizers.adamw import MOMENTS, WEIGHT_DECAY, step_adamw
from nbllm.training.optimizers.base import OPTIMIZERS, SteerableOptimizer, parameter_groups

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPS = 1e-7
_AT_ONCE = 1 << 24  # elements that are orthogonalized together: few calls for many small matrices


@OPTIMIZERS.register("muon")
class Muon(SteerableOptimizer):
    """Steps along the nearest orthogonal matrix to a momentum, for the matrices of the blocks: 4 bytes of state each.

    Embedding, output head and vectors are trained by AdamW, as Muon's authors do. An update has the size of AdamW's
    (0.2 times the root of the longer side), so that one learning rate and one weight decay serve both. Of a parameter
    that is split over ranks the momentum is gathered, one matrix at a time, and every rank orthogonalizes it.

    torch.optim.Muon computes one matrix after the other and always in bfloat16, which processors without instructions
    for it compute slowly; here matrices of one shape are computed together, in float32 on the CPU.

    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982, section 2.2 (the
    size of an update).
    """

    settings = (
        Setting(name="momentum", low=0.0, high=0.999999, default=0.95, help="Muon's decay of the momentum."),
        *MOMENTS,
        WEIGHT_DECAY,
    )

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        """Make it; matrices of blocks are recognised by their names, such as `blocks.0.attention.query.weight`."""
        hidden = {name: each for name, each in parameters.items() if _is_hidden(name, each)}
        others = {name: each for name, each in parameters.items() if name not in hidden}
        groups = [{**group, "orthogonal": True} for group in parameter_groups(hidden)]
        groups += [{**group, "orthogonal": False} for group in parameter_groups(others)]
        torch.optim.Optimizer.__init__(self, groups, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure is called
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [each for each in group["params"] if each.grad is not None]
            if not group["orthogonal"]:
                step_adamw(parameters, self.state, group)
                continue
            alike: dict[torch.Size, list[Tensor]] = {}
            for parameter in parameters:
                alike.setdefault(parameter.shape, []).append(parameter)
            for shape, members in alike.items():
                count = max(1, _AT_ONCE // shape.numel())
                for first in range(0, len(members), count):
                    self._update(members[first : first + count], group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        updates = []
        for parameter in parameters:
            gradient = parameter.grad
            assert gradient is not None
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffer = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
            updates.append(whole_tensor(gradient.lerp(buffer, group["momentum"])))
        step = 0.2 * math.sqrt(max(parameters[0].shape)) * group["lr"]
        for parameter, update in zip(parameters, orthogonalized(torch.stack(updates)), strict=True):
            values = local_part(parameter)
            values.mul_(1 - group["lr"] * group["weight_decay"])
            values.add_(local_part(placed_like(parameter, update)), alpha=-step)


def orthogonalized(x: Tensor) -> Tensor:
    """Return about the nearest (semi-)orthogonal matrix to each of some: the singular values become about 1.

    Five steps of a Newton-Schulz iteration whose coefficients bring small singular values up fast and leave all
    between 0.7 and 1.2.

    Args:
        x: (matrices, rows, columns).
    """
    a, b, c = _COEFFICIENTS
    tall = x.shape[-2] > x.shape[-1]
    y = x.mT if tall else x
    y = y.to(torch.bfloat16 if x.is_cuda else torch.float32)
    y = y / torch.linalg.matrix_norm(y, keepdim=True).clamp(min=_EPS)
    for _ in range(_ITERATIONS):
        gram = y @ y.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        y = torch.baddbmm(y, polynomial, y, beta=a)
    return (y.mT if tall else y).to(x.dtype)


def _is_hidden(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and "blocks" in name.split(".")
