"""Signatures and help that name every setting of functions that take them as `**settings`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Sequence
from types import MappingProxyType
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


def settings_of(kind: type[Config], without: Sequence[str] = (), **defaults: Any) -> list[inspect.Parameter]:
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


class _Later(inspect.Signature):
    """A signature some of whose parameters are made when they are first asked for.

    Args:
        function: The function.
        settings: Makes the parameters that stand for its `**settings`.
    """

    def __init__(
        self, function: Callable[..., Any], settings: Callable[[], Iterable[inspect.Parameter]]
    ) -> None:
        own = inspect.signature(function)
        super().__init__(list(own.parameters.values()), return_annotation=own.return_annotation)
        self._settings = settings

    @property
    def parameters(self) -> MappingProxyType[str, inspect.Parameter]:
        return _with(super().parameters.values(), self._settings()).parameters

    def replace(self, **changes: Any) -> inspect.Signature:  # type: ignore[override]
        """Return an ordinary signature, with changes."""
        own = super().parameters.values()
        return (
            _with(own, self._settings()).replace(return_annotation=self.return_annotation).replace(**changes)
        )


def takes_later(
    settings: Callable[[], Iterable[inspect.Parameter]],
) -> Callable[[Function], Function]:
    """Decorate as `takes` does, where finding out the settings would load what the import must not.

    Args:
        settings: Returns them, when somebody asks for the signature's parameters.
    """

    def decorate(function: Function) -> Function:
        function.__signature__ = _Later(function, settings)  # type: ignore[attr-defined]
        return function

    return decorate


def _with(own: Iterable[inspect.Parameter], settings: Iterable[inspect.Parameter]) -> inspect.Signature:
    """Return a signature of parameters, the settings in place of `**settings`."""
    kept = [parameter for parameter in own if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    names = {parameter.name for parameter in kept}
    added = {parameter.name: parameter for parameter in settings if parameter.name not in names}
    return inspect.Signature([*kept, *added.values()])


def takes(
    parameters: Iterable[inspect.Parameter], *described_by: type[Config]
) -> Callable[[Function], Function]:
    """Decorate a function that takes settings as `**name`: `inspect.signature`, completion and help then show them.

    Args:
        parameters: The settings; one that the function has as a parameter of its own is left out.
        *described_by: Configurations whose descriptions of their fields are added to the function's.
    """

    def decorate(function: Function) -> Function:
        own = inspect.signature(function)
        shown = _with(own.parameters.values(), parameters).replace(return_annotation=own.return_annotation)
        function.__signature__ = shown  # type: ignore[attr-defined]
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
