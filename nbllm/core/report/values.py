"""Values as JSON holds them, and the making of frozen records from such values."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Cell = str | int | float | bool | None


def plain(value: Any) -> Cell:
    """Return a value as a table cell holds it: text, a number, a truth value or `None`."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, numbers.Real):
        return finite(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={plain(item)}" for name, item in value.items())
    if isinstance(value, Sequence):
        return ", ".join(str(plain(item)) for item in value)
    return str(value)


def finite(value: Any) -> int | float | None:
    """Return a number of Python's own; None for None and for what is not finite.

    Raises:
        TypeError: It is no number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{value!r} is no number")
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None


def finite_all(values: Iterable[Any]) -> tuple[Any, ...]:
    """Return each number as `finite` does."""
    return tuple(finite(value) for value in values)


def listed(value: Any) -> Any:
    """Return a value with lists for tuples, all the way down."""
    if isinstance(value, Mapping):
        return {name: listed(item) for name, item in value.items()}
    return [listed(item) for item in value] if isinstance(value, (tuple, list)) else value


def rebuild(kind: type[Any], value: Any) -> Any:
    """Return a record of a kind, made from its fields where it is not one yet."""
    return value if isinstance(value, kind) else kind(**value)


def set_fields(instance: Any, **values: Any) -> None:
    """Set fields of a frozen dataclass that is being made."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)
