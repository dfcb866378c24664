"""AdamW with decoupled decay on matrices only, over float32 masters; and which parts are frozen."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nbllm.core.errors import UserError


class Optimizer:
    """Fused AdamW over a model's parameters, held in float32 whatever the model computes in.

    In float32 the model's own parameters are trained. In bfloat16 each has a float32 master: gradients are added
    to the master's, and after the step the parameter is a rounded copy of it, since a step smaller than
    bfloat16's spacing would otherwise be lost.

    Sources: Loshchilov and Hutter 2017, arXiv:1711.05101, algorithm 2; Micikevicius et al. 2017, arXiv:1710.03740,
    section 3.1 (master weights).
    """

    def __init__(self, model: nn.Module, *, dtype: torch.dtype, eps: float) -> None:
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
        matrices = [m for m in self.masters.values() if m.ndim >= 2]
        others = [m for m in self.masters.values() if m.ndim < 2]
        groups: list[dict[str, Any]] = [{"params": group} for group in (matrices, others) if group]
        self.adamw = torch.optim.AdamW(groups, eps=eps, weight_decay=0.0, fused=True)

    def apply(self, *, lr: float, beta1: float, beta2: float, weight_decay: float) -> None:
        """Set what the next step uses."""
        for group in self.adamw.param_groups:
            group.update(lr=lr, betas=(beta1, beta2))
            if group["params"][0].ndim >= 2:
                group["weight_decay"] = weight_decay

    def freeze(self, patterns: Iterable[str]) -> None:
        """Freeze the parameters that match one of `patterns` (as in file names: `blocks.0.*`), thaw all others."""
        patterns = list(patterns)
        for name, parameter in self.parameters.items():
            frozen = is_frozen(name, patterns)
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

    def scale_gradients(self, factor: float) -> None:
        """Multiply all gradients by `factor`."""
        torch._foreach_mul_([m.grad for m in self.masters.values() if m.grad is not None], factor)

    def clip(self, max_norm: float) -> float:
        """Scale the gradients down to `max_norm` where their norm is larger; return the norm before."""
        with_gradient = [m for m in self.masters.values() if m.grad is not None]
        gradients = [m.grad for m in with_gradient if m.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        if not norm <= max_norm:  # else every gradient would be multiplied by one
            nn.utils.clip_grads_with_norm_(with_gradient, max_norm, norm, foreach=True)
        return float(norm)

    def step(self) -> None:
        """Update the masters, and round them into the parameters."""
        self.adamw.step()
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the parameters."""
        if self.has_masters:
            for name, parameter in self.parameters.items():
                parameter.copy_(self.masters[name])

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self.adamw.zero_grad(set_to_none=True)
        for parameter in self.parameters.values():
            parameter.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """Return AdamW's state by name: `exp_avg.<parameter>`, `exp_avg_sq.<parameter>`, `step.<parameter>`."""
        tensors = {}
        for name, master in self.masters.items():
            for key, value in self.adamw.state.get(master, {}).items():
                tensors[f"{key}.{name}"] = value.detach().cpu().contiguous()
        return tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state_tensors` returned; a parameter without an entry starts afresh.

        Raises:
            UserError: A tensor belongs to no parameter, or has another shape.
        """
        self.adamw.state.clear()
        for full_name, value in tensors.items():
            key, _, name = full_name.partition(".")
            master = self.masters.get(name)
            if master is None or (key != "step" and value.shape != master.shape):
                raise UserError(f"The optimizer state {full_name!r} fits no parameter of this model.")
            # AdamW's fused form wants its step count beside the parameter.
            self.adamw.state[master][key] = value.clone().to(master.device)


def is_frozen(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a parameter's name matches one of `patterns`."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(names: Iterable[str], patterns: Iterable[str]) -> None:
    """Raise `UserError` for a pattern that matches no parameter, showing some that exist."""
    names = list(names)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(names[:4])
            raise UserError(
                f"The pattern {pattern!r} matches no parameter.", hint=f"Parameters are: {shown}, ..."
            )
