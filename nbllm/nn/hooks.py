"""Whether a module may be computed together with its neighbours, without being called."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

Class = TypeVar("Class", bound=type[nn.Module])

# What torch runs when a module of its own is called.
_CALLED = ("__call__", "_wrapped_call_impl", "_call_impl", "__getattr__", "__iter__", "forward")
_TORCHS = (nn.Module, nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.ModuleList)


def _methods(kind: type[nn.Module]) -> dict[str, Any]:
    """Return what a class itself defines to be called or computed."""
    return {
        name: value
        for name, value in vars(kind).items()
        if callable(value) or isinstance(value, (property, staticmethod, classmethod))
    }


_original: dict[type[nn.Module], dict[str, Any]] = {}


def keep_methods(kind: Class) -> Class:
    """Remember a class's methods as they are defined, for `methods_are_original`; a decorator."""
    _original[kind] = _methods(kind)
    return kind


def methods_are_original(kind: type[nn.Module]) -> bool:
    """Return whether no method of a class or its bases was replaced, added or removed since they were defined.

    Of torch's own classes only what runs when they are called is looked at, since this module was imported. A class
    that was not decorated with `keep_methods` counts as changed.
    """
    return all(_is_original(base) for base in kind.__mro__ if base is not object)


def _is_original(kind: type[nn.Module]) -> bool:
    if kind in _torchs:
        return _called(kind) == _torchs[kind]
    return kind in _original and _methods(kind) == _original[kind]


def _called(kind: type[nn.Module]) -> list[Any]:
    return [vars(kind).get(name) for name in _CALLED]


_torchs: dict[type[nn.Module], list[Any]] = {kind: _called(kind) for kind in _TORCHS}


def has_hooks(module: nn.Module) -> bool:
    """Return whether anything is to be run when a module is called, or when gradients pass it."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Return whether `module` is just one of `kinds`, so that its parameters alone say what it computes.

    A subclass (an adapter, a parametrization), a module with hooks or one whose `forward` was replaced must be
    called.
    """
    return type(module) in kinds and not has_hooks(module) and "forward" not in vars(module)
