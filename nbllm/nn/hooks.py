"""Whether a module may be computed together with its neighbours, without being called."""

from __future__ import annotations

from torch import nn


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Return whether `module` is just one of `kinds`, so that its parameters alone say what it computes.

    A subclass (an adapter, a parametrization) or a module with hooks wants to be called.
    """
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return type(module) in kinds and not any(hooks)
