"""The base of every configuration: frozen, keyword-only dataclasses that refuse unknown keys."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Mapping
from typing import Any, Self

from nbllm.core.errors import UserError, nearest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A frozen configuration; subclasses declare fields and check them in `__post_init__`."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from a mapping; an unknown key is an error that names the nearest known one.

        Raises:
            UserError: A key is unknown or a value out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for key in values:
            if key not in known:
                raise UserError(f"{cls.__name__} has no setting {key!r}.", hint=nearest(key, known))
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values that JSON can hold."""
        return dataclasses.asdict(self)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with `changes`; unknown keys are refused as in `from_dict`."""
        return self.from_dict(
            {**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, **changes}
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainConfig(Config):
    """A configuration that people write by hand: numbers become their field's type, other types are refused."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from a mapping.

        Raises:
            UserError: A key is unknown, or a value is of another type or out of range.
        """
        return super().from_dict(check_plain_types(cls, values))


def check_positive(config: Config, *names: str) -> None:
    """Raise `UserError` unless each named field is greater than zero."""
    for name in names:
        value = getattr(config, name)
        if not value > 0:
            raise UserError(f"{name} must be greater than 0, not {value!r}.", where=type(config).__name__)


def check_choice(config: Config, name: str, choices: tuple[str, ...]) -> None:
    """Raise `UserError` unless the named field is one of `choices`."""
    value = getattr(config, name)
    if value not in choices:
        raise UserError(
            f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}.",
            where=type(config).__name__,
            hint=nearest(str(value), choices),
        )


def check_plain_types(kind: type[Config], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with each number converted to its field's type.

    Fields declared as `int`, `float`, `bool` or `str`, or as one of these or `None`, are checked; a whole number is
    accepted for a float, and NumPy's numbers for Python's.

    Raises:
        UserError: A value is of another type.
    """
    declared = {field.name: field.type for field in dataclasses.fields(kind)}
    out = dict(values)
    for name, value in values.items():
        expected = declared.get(name)
        if value is None and str(expected).endswith(" | None"):
            continue
        expected = expected.removesuffix(" | None") if isinstance(expected, str) else expected
        if expected not in _PLAIN:
            continue
        abstract, convert, words = _PLAIN[expected]
        if not isinstance(value, abstract) or (isinstance(value, bool) and abstract is not bool):
            raise UserError(f"{name} must be {words}, not {value!r}.", where=kind.__name__)
        try:
            out[name] = convert(value)
        except OverflowError:
            raise UserError(f"{name} is too large: {value!r}.", where=kind.__name__) from None
    return out


_PLAIN: dict[object, tuple[type, Callable[[Any], Any], str]] = {
    key: (abstract, kind, words)
    for kind, abstract, words in (
        (int, numbers.Integral, "a whole number"),
        (float, numbers.Real, "a number"),
        (bool, bool, "true or false"),
        (str, str, "a text"),
    )
    for key in (kind, kind.__name__)  # annotations may be types or, postponed, their names
}
