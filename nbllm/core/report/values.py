"""The values that JSON holds, and frozen records whose fields are checked against what they declare."""

from __future__ import annotations

import dataclasses
import functools
import numbers
import reprlib
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Cell = str | int | float | bool | None
Value = Cell | tuple[Cell, ...]  # one value of an example's row: a cell, or several (all gold answers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """A frozen record of values that JSON holds.

    Each field is brought to the type that it declares: lists become tuples, mappings the records they describe,
    numbers of NumPy Python's own. So a record that was made or read back can be shown.

    Raises:
        TypeError, ValueError: A value is not what its field declares.
    """

    def __post_init__(self) -> None:
        """Bring every field to its declared type."""
        kind: Any = type(self)
        hints = _hints(kind)
        for field in dataclasses.fields(self):
            try:
                value = conform(getattr(self, field.name), hints[field.name])
            except (TypeError, ValueError) as error:
                raise type(error)(f"{field.name}: {error}") from error
            set_fields(self, **{field.name: value})


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def conform(value: Any, kind: Any) -> Any:
    """Return a value as a declared type has it.

    Args:
        value: Made by Python code, or read from JSON.
        kind: `str`, `bool`, `int`, `float` (finite), `float | None` (what is not finite becomes `None`), `Cell`,
            `Value`, a record, or tuples, mappings and optional ones of these.

    Raises:
        TypeError: It is of another type.
        ValueError: A number is not finite, or a tuple has the wrong length.
    """
    if kind is Cell or kind == Cell:
        return plain(value)
    if kind == Value:
        return tuple(plain(item) for item in value) if isinstance(value, (list, tuple)) else plain(value)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _conform_optional(value, arguments)
    if origin is tuple:
        return _conform_tuple(value, arguments)
    if origin is not None:
        return _conform_mapping(value, arguments)
    if kind in (str, bool):
        if not isinstance(value, kind):
            raise TypeError(f"{reprlib.repr(value)} is not a {'text' if kind is str else 'truth value'}")
        return plain(value)
    if kind in (int, float):
        number = finite(value)
        if number is None or (kind is int and not isinstance(number, int)):
            raise ValueError(f"{value!r} is not a {'whole' if kind is int else 'finite'} number")
        return number
    if isinstance(value, Mapping) and not isinstance(value, kind):
        return kind(**value)
    if not isinstance(value, kind):
        raise TypeError(f"{reprlib.repr(value)} is not a {kind.__name__}")
    return value


def _conform_optional(value: Any, kinds: tuple[Any, ...]) -> Any:
    members = [kind for kind in kinds if kind is not type(None)]
    optional = len(members) < len(kinds)
    if value is None and optional:
        return None
    if set(members) <= {int, float}:
        number = finite(value)
        return number if optional or number is not None else conform(value, float)
    (member,) = members
    return conform(value, member)


def _conform_tuple(value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise TypeError(f"{reprlib.repr(value)} is not a list")
    items = list(value)
    if kinds[-1] is Ellipsis:
        return tuple(conform(item, kinds[0]) for item in items)
    if len(items) != len(kinds):
        raise ValueError(f"{reprlib.repr(items)} has not {len(kinds)} items")
    return tuple(conform(item, kind) for item, kind in zip(items, kinds, strict=True))


def _conform_mapping(value: Any, kinds: tuple[Any, ...]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{reprlib.repr(value)} is not a mapping")
    return {conform(name, str): conform(item, kinds[1]) for name, item in value.items()}


def plain(value: Any) -> Cell:
    """Return a value as a table cell holds it: text, a number, a truth value or `None`."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()  # a scalar of NumPy or torch
    if isinstance(value, str):
        return str.__str__(value)  # a generation is text that carries more than JSON holds
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Real):
        return finite(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={plain(item)}" for name, item in value.items())
    if isinstance(value, Sequence):
        return ", ".join(str(plain(item)) for item in value)
    return str(value)


def finite(value: Any) -> int | float | None:
    """Return a number as Python's own; `None` for `None` and for what is not finite or beyond what a float holds.

    Raises:
        TypeError: It is not a number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{reprlib.repr(value)} is not a number")
    number = int(value) if isinstance(value, numbers.Integral) else float(value)
    return number if abs(number) <= sys.float_info.max else None


def listed(value: Any) -> Any:
    """Return a value with lists for tuples, all the way down."""
    if isinstance(value, Mapping):
        return {name: listed(item) for name, item in value.items()}
    return [listed(item) for item in value] if isinstance(value, (tuple, list)) else value


def set_fields(instance: Any, **values: Any) -> None:
    """Set fields of a frozen dataclass that is being made."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)
