"""An optimizer over float32 master weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from nbllm.core.errors import UserError
from nbllm.training.optimizers.base import SteerableOptimizer


class Optimizer:
    """An optimizer over a model's parameters, which are held in float32 whatever the model computes in.

    In float32 the model's own parameters are trained. In bfloat16 each has a float32 master: gradients are added
    to the master's, and after the step the parameter is a rounded copy of it, since a step smaller than
    bfloat16's spacing would otherwise be lost.

    Args:
        model: What is trained; its parameters become `dtype`.
        kind: One of `nbllm.training.optimizers.OPTIMIZERS`.
        dtype: What the model computes in.

    Source: Micikevicius et al. 2017, arXiv:1710.03740, section 3.1 (master weights).
    """

    def __init__(self, model: nn.Module, kind: type[SteerableOptimizer], *, dtype: torch.dtype) -> None:
        self.names = [name for name, _ in model.named_parameters()]
        self.has_masters = dtype != torch.float32
        self.masters: dict[str, Tensor] = {}
        if self.has_masters:  # made before the model is rounded
            self.masters = {
                name: nn.Parameter(parameter.detach().to(torch.float32, copy=True))
                for name, parameter in model.named_parameters()
            }
        model.to(dtype)
        self.parameters = dict(model.named_parameters())
        if not self.has_masters:
            self.masters = dict(self.parameters)
        self.inner = kind(self.masters)

    def configure(self, *, lr: float, **values: float) -> None:
        """Set what the next step uses: the learning rate, and the optimizer's own settings by name."""
        self.inner.configure(lr=lr, **values)

    def freeze(self, names: Collection[str]) -> None:
        """Freeze just the parameters of these names."""
        for name, parameter in self.parameters.items():
            frozen = name in names
            parameter.requires_grad_(not frozen)
            if frozen:
                parameter.grad = None
                self.masters[name].grad = None

    def gather_gradients(self) -> None:
        """After a backward pass: add the parameters' gradients to the masters' and drop them."""
        if not self.has_masters:
            return
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            master = self.masters[name]
            if master.grad is None:
                master.grad = parameter.grad.float()
            else:
                master.grad += parameter.grad
            parameter.grad = None

    def gradients(self) -> list[Tensor]:
        """Return the masters' gradients, where there are any."""
        return [m.grad for m in self.masters.values() if m.grad is not None]

    def scale_gradients(self, factor: float) -> None:
        """Multiply all gradients by `factor`."""
        torch._foreach_mul_(self.gradients(), factor)

    def clip(self, max_norm: float) -> float:
        """Scale the gradients down to `max_norm` where their norm is larger; return the norm before."""
        with_gradient = [m for m in self.masters.values() if m.grad is not None]
        norm = nn.utils.get_total_norm(self.gradients(), foreach=True)
        if not norm <= max_norm:  # else every gradient would be multiplied by one
            nn.utils.clip_grads_with_norm_(with_gradient, max_norm, norm, foreach=True)
        return float(norm)

    def step(self) -> None:
        """Update the masters, and round them into the parameters."""
        self.inner.step()
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the parameters."""
        if self.has_masters:
            for name, parameter in self.parameters.items():
                parameter.copy_(self.masters[name])

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self.inner.zero_grad(set_to_none=True)
        for parameter in self.parameters.values():
            parameter.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the optimizer's state by name, `<key>.<parameter>`: for AdamW the keys exp_avg, exp_avg_sq, step."""
        tensors = {}
        for name, master in self.masters.items():
            for key, value in self.inner.state.get(master, {}).items():
                if value is not None:  # SGD's momentum, before the first step
                    tensors[f"{key}.{name}"] = value.detach().cpu().contiguous()
        return tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state_tensors` returned; a parameter without an entry starts afresh.

        Raises:
            UserError: A tensor belongs to no parameter, or has another shape.
        """
        self.inner.state.clear()
        for full_name, value in tensors.items():
            key, _, name = full_name.partition(".")
            master = self.masters.get(name)
            if master is None or not self.inner.fits(master, key, value):
                raise UserError(f"The optimizer state {full_name!r} fits no parameter of this model.")
            # AdamW's fused form takes its step count from the parameter's device.
            self.inner.state[master][key] = value.clone().to(master.device)
