"""What an action or a setting takes: a named value of one kind, within a range. Values may come from anywhere."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

from nbllm.core.config import Config, check_choice
from nbllm.core.errors import RefusedError

MAX_PATTERNS = 1000
MAX_TEXT = 100_000  # characters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Argument(Config):
    """A named value of one kind, within a range.

    Args:
        name: What it is called.
        kind: "float", "int", "text", "flag" (true or false), "list", "values" (anything, by name), or
            "patterns" (that name parts of the model; see `nbllm.runs.patterns`).
        low: Smallest number; `None` is no bound.
        high: Largest number; `None` is no bound.
        low_open: The number must be above `low`, not equal to it.
        high_open: The number must be below `high`, not equal to it.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("float", "int", "text", "flag", "list", "values", "patterns")

    name: str
    kind: str = "float"
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False

    def __post_init__(self) -> None:
        """Check the kind."""
        check_choice(self, "kind", self.KINDS)

    def check(self, value: Any) -> Any:
        """Return `value` as this kind's type. Numbers may come as text, one pattern without its list.

        Raises:
            RefusedError: It is of another kind or out of range; `what` is the reason.
        """
        if self.kind == "patterns":
            return self._check_patterns(value)
        if self.kind in ("float", "int"):
            return self._check_number(value)
        kind, wanted = {
            "text": (str, "a text"),
            "flag": (bool, "true or false"),
            "list": (list, "a list"),
            "values": (dict, "values by name"),
        }[self.kind]
        if not isinstance(value, kind):
            raise RefusedError(f"{self.name} must be {wanted}, not {short(value)}.")
        if isinstance(value, str):
            self._check_text(value)
        return value

    @property
    def range_text(self) -> str:
        """The range in words: "above 0 and at most 1"."""
        parts = []
        if self.low is not None:
            parts.append(f"{'above' if self.low_open else 'at least'} {self.low:g}")
        if self.high is not None:
            parts.append(f"{'below' if self.high_open else 'at most'} {self.high:g}")
        return " and ".join(parts) or "any finite number"

    def _check_number(self, value: Any) -> float | int:
        wanted = "a whole number" if self.kind == "int" else "a number"
        refusal = RefusedError(f"{self.name} must be {wanted}, not {short(value)}.")
        if isinstance(value, (bool, bytes)):
            raise refusal
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise refusal from None
        if not math.isfinite(number) or (self.kind == "int" and not number.is_integer()):
            raise refusal
        if not self._within(number):
            raise RefusedError(f"{self.name} must be {self.range_text}, not {number:g}.")
        return int(number) if self.kind == "int" else number

    def _within(self, number: float) -> bool:
        if self.low is not None and (number < self.low or (self.low_open and number == self.low)):
            return False
        return not (
            self.high is not None and (number > self.high or (self.high_open and number == self.high))
        )

    def _check_text(self, value: str) -> None:
        if len(value) > MAX_TEXT:
            raise RefusedError(f"{self.name} has {len(value):,} characters; at most {MAX_TEXT:,} are taken.")
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise RefusedError(f"{self.name} holds half a character (a lone surrogate), which is not text.")

    def _check_patterns(self, value: Any) -> list[str]:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, (list, tuple)) or not values:
            raise RefusedError(f"{self.name} must be one or more names of model parts, not {short(value)}.")
        if len(values) > MAX_PATTERNS:
            raise RefusedError(f"{self.name} must be at most {MAX_PATTERNS} names, not {len(values)}.")
        for pattern in values:
            if not isinstance(pattern, str) or not pattern.strip() or len(pattern) > 1000:
                raise RefusedError(f"{self.name} must be names of model parts, not {short(pattern)}.")
            self._check_text(pattern)
        return list(values)


def short(value: Any) -> str:
    """Return a value as a message can hold it, whatever it is."""
    if isinstance(value, (list, tuple, dict, set)) and len(value) > 5:
        return f"a {type(value).__name__} of {len(value):,} entries"
    text = ascii(value[:60]) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
