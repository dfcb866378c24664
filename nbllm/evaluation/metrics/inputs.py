"""What a metric takes of each example: checked, converted, and described to `datasets`."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nbllm.core.errors import DataError


@dataclasses.dataclass(frozen=True)
class Input:
    """One input of a metric.

    Args:
        words: What each value is, for messages: "a text".
        features: The types of `datasets` that hold it, the first that fits: names of value types, lists and
            dictionaries of them.
        read: Returns a value in that type; raises `TypeError` or `ValueError` saying what is wrong with it.
    """

    words: str
    features: tuple[Any, ...]
    read: Callable[[Any], Any]

    def read_all(self, name: str, values: Sequence[Any]) -> list[Any]:
        """Return the values converted.

        Args:
            name: Of the input, for messages.
            values: One for each example.

        Raises:
            DataError: One is missing or of another type; its index is named.
        """
        out = []
        for index, value in enumerate(values):
            try:
                out.append(self.read(_plain(value)))
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"{name}[{index}] {error}.",
                    hint=f"Each of the {name} is {self.words}.",
                ) from None
        return out


def _plain(value: Any) -> Any:
    """Return a value of NumPy or PyTorch as one of Python."""
    return value.tolist() if hasattr(value, "tolist") else value


def _text(value: Any) -> str:
    if value is None:
        raise TypeError("is None: missing is not the same as empty, which is ''")
    if not isinstance(value, str):
        raise TypeError(f"is {_kind(value)}, not a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has half a surrogate pair at {error.start}, which is no character") from None
    return value


def _texts(value: Any) -> list[str]:
    """Return one text or several as a list."""
    if value is None or isinstance(value, str):
        return [_text(value)]
    if not isinstance(value, Sequence):
        raise TypeError(f"is {_kind(value)}, not a text or a list of texts")
    if not value:
        raise ValueError("is an empty list: there is nothing to compare with")
    for index, each in enumerate(value):
        if each is None:
            raise TypeError(f"has None at {index}: leave a reference that does not exist out of the list")
        if not isinstance(each, str):
            raise TypeError(f"has {_kind(each)} at {index}, not a text")
        _text(each)
    return list(value)


def _number(value: Any) -> float:
    if value is None:
        raise TypeError("is None")
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"is {_kind(value)}, not a number")
    if not math.isfinite(value):
        raise ValueError(f"is {float(value)}, not a finite number")
    return float(value)


def _probability(value: Any) -> float:
    number = _number(value)
    if not 0 <= number <= 1:
        raise ValueError(f"is {number}, not a probability between 0 and 1")
    return number


def _probabilities(value: Any) -> float | list[float]:
    """Return the probability of the one class, or those of all."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return _probability(value)
    out = [_probability(each) for each in value]
    if abs(sum(out) - 1) > 1e-3:
        raise ValueError(f"has probabilities whose sum is {sum(out):.4g}, not 1")
    return out


def _outcome(value: Any) -> int:
    if value is None:
        raise TypeError("is None")
    if isinstance(value, (int, float)) and value in (0, 1):
        return int(value)
    raise TypeError(f"is {value!r}, not true or false, 1 or 0")


def _outcomes(value: Any) -> list[int]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"is {'None' if value is None else _kind(value)}, not a list of true and false")
    if not value:
        raise ValueError("is an empty list: there is no sample")
    return [_outcome(each) for each in value]


def _label(value: Any) -> int | str:
    if value is None:
        raise TypeError("is None")
    if isinstance(value, str):
        return _text(value)
    if not isinstance(value, numbers.Integral) and not (isinstance(value, float) and value.is_integer()):
        raise TypeError(f"is {_kind(value)}, not a label (a whole number or a text)")
    number = int(value)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"is {number}, too large for a label")
    return number


def _kind(value: Any) -> str:
    return f"of type {type(value).__name__}"


def record(**fields: Input) -> Callable[[Any], dict[str, Any]]:
    """Return a function that reads a dictionary of these fields; others are left out."""

    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise TypeError(f"is {_kind(value)}, not a dictionary with {' and '.join(fields)}")
        out = {}
        for name, field in fields.items():
            if name not in value:
                raise ValueError(f"has no {name!r}")
            try:
                out[name] = field.read(_plain(value[name]))
            except (TypeError, ValueError) as error:
                raise type(error)(f"has the key {name!r}, which {error}") from None
        return out

    return read


TEXT = Input("a text", ("string",), _text)
TEXTS = Input("a text, or a list of texts where there are several", (["string"],), _texts)
NUMBER = Input("a number", ("float64",), _number)
LABEL = Input("a label: a whole number or a text", ("int64", "string"), _label)
PROBABILITY = Input("a probability between 0 and 1", ("float64",), _probability)
PROBABILITIES = Input(
    "a probability, or a list with that of every class", ("float64", ["float64"]), _probabilities
)
OUTCOME = Input("true or false", ("int64",), _outcome)
OUTCOMES = Input("a list of true and false, one for each sample", (["int64"],), _outcomes)
