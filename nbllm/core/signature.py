"""Signatures and help that name every setting of functions that take them as `**settings`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from nbllm.core.config import Config

Function = TypeVar("Function", bound=Callable[..., Any])


class InWords:
    """Stands in a signature for a default that depends on the other arguments.

    Args:
        words: What it is, shown in its place.
    """

    def __init__(self, words: str) -> None:
        self.words = words

    def __repr__(self) -> str:
        return f"<{self.words}>"


def settings_of(
    kind: type[Config], *, without: Sequence[str] = (), **defaults: Any
) -> list[inspect.Parameter]:
    """Return the fields of a configuration as keyword parameters.

    Args:
        kind: The configuration.
        without: Fields that are left out.
        **defaults: Defaults that differ from the configuration's.
    """
    return [
        setting(field.name, defaults.get(field.name, _default(field)), field.type)
        for field in dataclasses.fields(kind)
        if field.name not in without
    ]


def setting(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    """Return a keyword parameter."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def takes(
    parameters: Iterable[inspect.Parameter], *described_by: type[Config]
) -> Callable[[Function], Function]:
    """Decorate a function that takes settings as `**name`: `inspect.signature`, completion and help then show them.

    Args:
        parameters: The settings; one that the function has as a parameter of its own is left out.
        *described_by: Configurations whose descriptions of their fields are added to the function's.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        names = {parameter.name for parameter in own}
        shown = {p.name: p for p in parameters if p.name not in names}
        function.__signature__ = signature.replace(parameters=[*own, *shown.values()])  # type: ignore[attr-defined]
        if function.__doc__ is not None:  # without docstrings under -OO
            function.__doc__ = inspect.cleandoc(function.__doc__) + "".join(map(_described, described_by))
        return function

    return decorate


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


def _described(kind: type[Config]) -> str:
    """Return the part of a configuration's description that lists its fields."""
    _, _, fields = (inspect.getdoc(kind) or "").partition("\nArgs:\n")
    listed, _, _ = fields.partition("\n\n")
    return f"\n\nSettings (`{kind.__name__}`):\n{listed}" if listed else ""
