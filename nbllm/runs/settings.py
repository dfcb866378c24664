"""What may change while a run goes on: the loop declares it, every front end offers it, both check."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

from nbllm.core.config import Config, check_choice
from nbllm.core.errors import RefusedError, nearest
from nbllm.core.text_table import text_table
from nbllm.runs.events import is_number

_HEADER = ("setting", "now", "range", "meaning")
KINDS = ("float", "int", "patterns")
MAX_PATTERNS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(Config):
    """One thing that a loop lets people change while it runs.

    Args:
        name: The name in `run.set(name=value)`.
        kind: "float", "int" or "patterns" (names of model parts, with `*`).
        low: Smallest value; `None` is no bound.
        high: Largest value; `None` is no bound.
        low_open: The value must be above `low`, not equal to it.
        high_open: The value must be below `high`, not equal to it.
        default: What it is at the start, where a loop declares that here (`nb.follow`).
        unit: What it is measured in, for labels.
        help: One sentence for the person.
    """

    name: str
    kind: str = "float"
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False
    default: float | None = None
    unit: str = ""
    help: str = ""

    def __post_init__(self) -> None:
        """Check the kind."""
        check_choice(self, "kind", KINDS)

    def check(self, value: Any) -> Any:
        """Return `value` as this setting's kind: float, int, or a list of patterns. Numbers may come as text.

        Raises:
            RefusedError: It is of another kind or out of range; `what` is the reason.
        """
        return self._check_patterns(value) if self.kind == "patterns" else self._check_number(value)

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
        refusal = RefusedError(f"{self.name} must be {wanted}, not {_short(value)}.")
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

    def _check_patterns(self, value: Any) -> list[str]:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, (list, tuple)) or not values:
            raise RefusedError(f"{self.name} needs one or more names of model parts, not {_short(value)}.")
        if len(values) > MAX_PATTERNS:
            raise RefusedError(f"{self.name} takes at most {MAX_PATTERNS} patterns, not {len(values)}.")
        for pattern in values:
            if not isinstance(pattern, str) or not pattern.strip() or len(pattern) > 1000:
                raise RefusedError(f"{self.name} needs names of model parts, not {_short(pattern)}.")
        return list(values)


class Settings(Sequence[Setting]):
    """What can be changed while a run goes on, and what it is now; shown as a table.

    Args:
        declared: The settings.
        values: Their values, as far as known.
    """

    def __init__(self, declared: Iterable[Setting], values: Mapping[str, Any]) -> None:
        self._declared = list(declared)
        self.values = {s.name: values[s.name] for s in self._declared if s.name in values}

    @overload
    def __getitem__(self, key: int) -> Setting: ...
    @overload
    def __getitem__(self, key: slice) -> Sequence[Setting]: ...
    def __getitem__(self, key: int | slice) -> Setting | Sequence[Setting]:
        return self._declared[key]

    def __len__(self) -> int:
        return len(self._declared)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return (name, value now with its unit, range, meaning) of each."""
        return [
            (s.name, f"{self.values.get(s.name, '?')} {s.unit}".strip(), s.range_text, s.help) for s in self
        ]

    def __repr__(self) -> str:
        return text_table([_HEADER, *self.rows()])

    def _repr_html_(self) -> str:
        from nbllm.core.html import fragment, table

        return fragment(table(self.rows(), _HEADER))


def check_settings(declared: Iterable[Setting], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` coerced to what `declared` says.

    Raises:
        RefusedError: A name is not declared, or a value is refused; nothing is then changed.
    """
    known = {setting.name: setting for setting in declared if setting.kind != "patterns"}
    if not values:
        raise RefusedError(f"Nothing to set was named. {_offer(known)}")
    checked = {}
    for name, value in values.items():
        if name not in known:
            hint = nearest(name, known) if known else "This run offers nothing to set."
            raise RefusedError(f"This run has no setting {name!r} that can change while it runs.", hint=hint)
        checked[name] = known[name].check(value)
    return checked


def declared_settings(record: Mapping[str, Any]) -> list[Setting]:
    """Return the settings in a run's record; what cannot be understood is left out, never offered."""
    found = []
    entries = record.get("settings")
    for entry in entries if isinstance(entries, list) else []:
        try:
            setting = Setting.from_dict(entry)
            bounds = (setting.low, setting.high)
            texts = (setting.name, setting.unit, setting.help)
            if all(isinstance(t, str) for t in texts) and all(b is None or is_number(b) for b in bounds):
                found.append(setting)
        except (TypeError, ValueError, AttributeError):
            continue
    return found


def declared_limits(record: Mapping[str, Any]) -> dict[str, str]:
    """Return what the loop of a run cannot do, by action, with the reasons."""
    entries = record.get("cannot")
    if not isinstance(entries, dict):
        return {}
    return {name: reason for name, reason in entries.items() if isinstance(reason, str)}


def _offer(known: Mapping[str, Setting]) -> str:
    return f"It offers: {', '.join(sorted(known))}." if known else "It offers nothing to set."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
