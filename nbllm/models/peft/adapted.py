"""Modules that compute with parts of adapters: a module's class changes while it has some.

The module stays the same object with the same parameters under the same names, and beside them has `adapters`, the
parts by the adapter's name. With the last part its class is what it was before, so that nothing of it is slower or
different. While it has parts, its class is not the one that fast paths stand in for (`nn.hooks.is_plain`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

Call = Callable[..., Any]


class Part(nn.Module):
    """What an adapter adds to one module.

    Attributes:
        order: Parts of a module are computed in this order, the last one around all others.
        can_merge: Whether it can be written into the module's weights.
        adds: Whether all it does is to add something to weight or bias, whatever these are.
    """

    order = 0
    can_merge = False
    adds = False

    def forward(self, module: nn.Module, inner: Call, *args: Any, **given: Any) -> Any:
        """Return what the module computes with this part.

        Args:
            module: The module.
            inner: Computes the module with the parts before this one.
            *args: What the module is called with.
            **given: As `args`.
        """
        raise NotImplementedError

    def merged(self, weight: Tensor, bias: Tensor | None, base: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias, in float32, that compute the same without this part.

        Args:
            weight: The module's, with the parts before this one merged.
            bias: As `weight`; None: there is none.
            base: The module's weight without any part.
        """
        raise NotImplementedError

    @torch.no_grad()
    def initialize(self, draw: torch.Generator, module: nn.Module) -> None:
        """Give its parameters new values.

        Args:
            draw: A generator on the CPU.
            module: The module that it belongs to; it has not got the part yet.
        """
        raise NotImplementedError


class Adapted(nn.Module):
    """Mixed into the class of a module that has parts."""

    adapters: nn.ModuleDict

    def forward(self, *args: Any, **given: Any) -> Any:
        """Compute the module inside its parts."""
        call: Call = super().forward
        for part in self.adapters.values():
            call = functools.partial(part, self, call)
        return call(*args, **given)


def plain_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that a module has without parts of adapters."""
    kind = type(module)
    return kind.__bases__[1] if issubclass(kind, Adapted) else kind


def add_part(module: nn.Module, name: str, part: Part, *, mixin: type[Adapted] = Adapted) -> None:
    """Let a module compute with a part of the adapter `name`."""
    if not isinstance(module, Adapted):
        module.__class__ = _with_parts(type(module), mixin)
        module.adapters = nn.ModuleDict()
    assert isinstance(module, Adapted)
    parts: list[tuple[str, Any]] = [*module.adapters.items(), (name, part)]
    parts.sort(key=lambda item: item[1].order)
    module.adapters = nn.ModuleDict(dict(parts))


def remove_part(module: nn.Module, name: str) -> None:
    """Take the part of the adapter `name` away again."""
    assert isinstance(module, Adapted)
    plain: nn.Module = module
    del module.adapters[name]
    if not module.adapters:
        del module.adapters
        plain.__class__ = plain_class(module)


_made: dict[tuple[type[nn.Module], type[Adapted]], type[nn.Module]] = {}


def _with_parts(kind: type[nn.Module], mixin: type[Adapted]) -> type[nn.Module]:
    if (kind, mixin) not in _made:
        made = type(f"Adapted{kind.__name__}", (mixin, kind), {"__module__": kind.__module__})
        _made[kind, mixin] = cast("type[nn.Module]", made)
    return _made[kind, mixin]


def draw_uniform(tensor: Tensor, bound: float, draw: torch.Generator) -> None:
    """Fill a tensor uniformly from -bound to bound; on the CPU in float32, alike on every device and dtype."""
    made = torch.empty(tensor.shape, dtype=torch.float32, device="cpu")
    tensor.copy_(made.uniform_(-bound, bound, generator=draw))


def draw_normal(tensor: Tensor, std: float, draw: torch.Generator) -> None:
    """Fill a tensor normally with a standard deviation, as `draw_uniform` does uniformly."""
    made = torch.empty(tensor.shape, dtype=torch.float32, device="cpu")
    tensor.copy_(made.normal_(0.0, std, generator=draw))


def empty(*shape: int, like: Tensor) -> nn.Parameter:
    """Return a zero parameter of a dtype and on a device."""
    return nn.Parameter(torch.zeros(shape, dtype=like.dtype, device=like.device))
