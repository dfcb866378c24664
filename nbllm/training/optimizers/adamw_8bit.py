"""AdamW whose moments are held in 8 bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from nbllm.distributed.sharded_tensors import local_part
from nbllm.training.optimizers.adamw import MOMENTS, WEIGHT_DECAY, step_adamw
from nbllm.training.optimizers.base import OPTIMIZERS, SteerableOptimizer
from nbllm.training.optimizers.dynamic_levels import dynamic_levels

BLOCK = 256
_SMALL = 4096  # elements; what is smaller keeps its moments in float32, as its authors advise
_NARROW = 64  # a row of fewer elements would need more memory for scales
_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 26}  # elements: what a cache holds, and few large calls for a GPU
_MOMENTS = {"exp_avg": True, "exp_avg_sq": False}  # by name: whether it has a sign


@OPTIMIZERS.register("adamw_8bit")
class AdamW8Bit(SteerableOptimizer):
    """AdamW with both moments in 8 bits, in blocks that share a scale: about 2 bytes of state for each element.

    A block is 256 neighbours in a row, or the most that divide the row evenly. Since no block lies in two rows, a
    matrix split over ranks by rows has the blocks of the whole. Vectors, small matrices, and a matrix that is split
    across its rows within a block keep their moments in float32. An update is computed before moments are rounded.

    Source: Dettmers et al. 2021, arXiv:2110.02861, sections 2 and 3.
    """

    settings = (*MOMENTS, WEIGHT_DECAY)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure is called
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            others = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if block := _block(parameter):
                    self._update(parameter, block, group)
                else:
                    others.append(parameter)
            step_adamw(others, self.state, group)

    def _update(self, parameter: Tensor, block: int, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(_fresh_state(parameter, block))
        state["step"] += 1
        assert parameter.grad is not None
        gradients = local_part(parameter.grad).reshape(-1, block)
        weights = local_part(parameter).view(-1, block)
        beta = {"exp_avg": group["beta1"], "exp_avg_sq": group["beta2"]}
        correction = {name: 1 - beta[name] ** state["step"] for name in beta}
        codes = {name: local_part(state[f"{name}_codes"]).view(-1, block) for name in beta}
        scales = {name: local_part(state[f"{name}_scales"]).view(-1, 1) for name in beta}
        rows = _AT_ONCE.get(weights.device.type, _AT_ONCE["cuda"]) // block
        for first in range(0, len(weights), rows):
            some = slice(first, first + rows)
            moments = {}
            for name, signed in _MOMENTS.items():
                levels = dynamic_levels(signed, weights.device)
                fresh = gradients[some] if name == "exp_avg" else gradients[some].square()
                moments[name] = levels.decode(codes[name][some], scales[name][some])
                moments[name].lerp_(fresh, 1 - beta[name])
                codes[name][some], scales[name][some] = levels.encode(moments[name])
            denominator = moments["exp_avg_sq"].div_(correction["exp_avg_sq"]).sqrt_().add_(group["eps"])
            update = moments["exp_avg"].div_(denominator).mul_(group["lr"] / correction["exp_avg"])
            weights[some].mul_(1 - group["lr"] * group["weight_decay"]).sub_(update)

    def fits(self, parameter: Tensor, key: str, value: Tensor) -> bool:
        """Return whether it is a moment, its codes or its scales."""
        shape, block = tuple(parameter.shape), _block(parameter)
        if key.endswith("_codes"):
            return bool(block) and tuple(value.shape) == shape and value.dtype == torch.uint8
        if key.endswith("_scales"):
            return bool(block) and tuple(value.shape) == (*shape[:-1], shape[-1] // block)
        return super().fits(parameter, key, value)


def _fresh_state(parameter: Tensor, block: int) -> dict[str, Tensor]:
    values, columns = local_part(parameter), parameter.shape[-1] // block
    state = {"step": torch.zeros((), device=values.device)}
    for name in _MOMENTS:
        codes = torch.zeros_like(values, dtype=torch.uint8)
        scales = values.new_zeros((*values.shape[:-1], values.shape[-1] // block))
        state[f"{name}_codes"] = _laid_like(parameter, codes, parameter.shape[-1])
        state[f"{name}_scales"] = _laid_like(parameter, scales, columns)
    return state


def _laid_like(parameter: Tensor, part: Tensor, columns: int) -> Tensor:
    """Return what this rank holds of a parameter's state, as laid over ranks as the parameter is.

    Args:
        parameter: The parameter.
        part: Of the shape of the parameter's part, but for the last dimension.
        columns: Size of the last dimension of the whole.
    """
    if not isinstance(parameter, DTensor):
        return part
    shape = torch.Size((*parameter.shape[:-1], columns))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        part, parameter.device_mesh, parameter.placements, run_check=False, shape=shape, stride=stride
    )


def _block(parameter: Tensor) -> int:
    """Return how many elements share a scale; 0 where the moments stay in float32."""
    if parameter.ndim < 2 or parameter.numel() < _SMALL:
        return 0
    values, columns = local_part(parameter), parameter.shape[-1]
    block = next(size for size in range(min(BLOCK, columns), 0, -1) if columns % size == 0)
    fits = block >= _NARROW and values.shape[-1] % block == 0 and values.is_contiguous()
    return block if fits else 0
