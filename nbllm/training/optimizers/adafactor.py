"""Adafactor: a second moment of which only the means of rows and columns are kept."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nbllm.distributed.sharded_tensors import local_part, placed_like, whole_tensor
from nbllm.runs.settings import Setting
from nbllm.training.optimizers.base import OPTIMIZERS, SteerableOptimizer

_EPS = 1e-30  # the paper's epsilon 1, added to the squares


@OPTIMIZERS.register("adafactor")
class Adafactor(SteerableOptimizer):
    """Steps relative to the size of each parameter, with next to no state: rows + columns numbers for a matrix.

    The learning rate is the paper's relative step size (about 0.01), which the loop's schedule sets; each parameter
    is moved by that share of its root mean square. It has no momentum. Of a parameter that is split over ranks the
    gradient is gathered, one parameter at a time, since its means are over whole rows and columns.

    torch.optim.Adafactor is not used: it limits the learning rate to 1 / sqrt(step), which would take no notice of a
    larger one that a person sets.

    Source: Shazeer and Stern 2018, arXiv:1804.04235, algorithms 4 and 5.
    """

    settings = (
        Setting(
            name="decay_rate",
            low=0.0,
            low_open=True,
            high=1.0,
            default=0.8,
            help="Adafactor's second moment decays by 1 - step^-decay_rate.",
        ),
        Setting(
            name="clip_threshold",
            low=0.0,
            low_open=True,
            high=1e6,
            default=1.0,
            help="Largest root mean square of an update, before the learning rate.",
        ),
        Setting(
            name="smallest_scale",
            low=0.0,
            high=1.0,
            default=1e-3,
            help="A parameter whose root mean square is smaller is moved as if it had this one.",
        ),
        Setting(
            name="weight_decay", low=0.0, high=10.0, default=0.0, help="Decay in each step, on matrices only."
        ),
    )

    keeps_whole_state = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure is called
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, whole_tensor(parameter.grad), group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = gradient.new_zeros(())
            if gradient.ndim >= 2:
                state["row"] = gradient.new_zeros(gradient.shape[:-1])
                state["column"] = gradient.new_zeros((*gradient.shape[:-2], gradient.shape[-1]))
            else:
                state["exp_avg_sq"] = torch.zeros_like(gradient)
        state["step"] += 1
        fresh = state["step"] ** -group["decay_rate"]  # the share of this step's squares in the second moment
        squares = gradient.square().add_(_EPS)
        if gradient.ndim >= 2:
            row = state["row"].lerp_(squares.mean(-1), fresh)
            column = state["column"].lerp_(squares.mean(-2), fresh)
            update = torch.mul(
                gradient, (row / row.mean(-1, keepdim=True)).rsqrt_().unsqueeze(-1), out=squares
            )
            update *= column.rsqrt().unsqueeze(-2)
        else:
            update = state["exp_avg_sq"].lerp_(squares, fresh).rsqrt().mul_(gradient)
        lr = group["lr"] * _root_mean_square(parameter).clamp_(min=group["smallest_scale"])
        update *= lr / (_root_mean_square(update) / group["clip_threshold"]).clamp_(min=1.0)
        values = local_part(parameter)
        values.mul_(1 - group["weight_decay"] * lr).sub_(local_part(placed_like(parameter, update)))

    def fits(self, parameter: Tensor, key: str, value: Tensor) -> bool:
        """Return whether it is a parameter's row or column means, or its second moment."""
        shapes = {"row": parameter.shape[:-1], "column": (*parameter.shape[:-2], *parameter.shape[-1:])}
        return tuple(value.shape) == tuple(
            shapes.get(key, value.shape if value.ndim == 0 else parameter.shape)
        )


def _root_mean_square(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x)
    return whole_tensor(norm) / math.sqrt(x.numel())
