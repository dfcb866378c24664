"""What may change while a run goes on: the loop declares it, every front end offers it, both check."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, overload

from nbllm.core.errors import RefusedError, nearest
from nbllm.core.html import fragment, table
from nbllm.core.text_table import text_table
from nbllm.runs.arguments import Argument, short
from nbllm.runs.events import is_number

_HEADER = ("setting", "now", "range", "meaning")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(Argument):
    """One thing that a loop lets people change while it runs: an argument of `run.set`.

    Args:
        name: The name in `run.set(name=value)`.
        kind: "float", "int" or "patterns" (that name parts of the model).
        low: Smallest value; `None` is no bound.
        high: Largest value; `None` is no bound.
        low_open: The value must be above `low`, not equal to it.
        high_open: The value must be below `high`, not equal to it.
        default: What it is at the start, where a loop declares that here (`nb.follow`).
        unit: What it is measured in, for labels.
        help: One sentence for the person.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("float", "int", "patterns")

    default: float | None = None
    unit: str = ""
    help: str = ""


class SettingTable(Sequence[Setting]):
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
            hint = nearest(str(name)[:80], known) if known else "This run offers nothing to set."
            raise RefusedError(
                f"This run has no setting {short(name)} that can change while it runs.", hint=hint
            )
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
