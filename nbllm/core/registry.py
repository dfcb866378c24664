"""Registries: entries of one kind (sources, families, schedules, metrics), looked up by name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from nbllm.core.errors import UserError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """A mapping from names to registered entries.

    Args:
        kind: What is registered, for error messages: "schedule", "metric".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers its argument under `name`."""

        def enter(entry: T) -> T:
            assert name not in self._entries, f"{self.kind} {name!r} is registered twice"
            self._entries[name] = entry
            return entry

        return enter

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise UserError(f"There is no {self.kind} named {name!r}.", hint=nearest(name, self._entries))
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def import_modules(package: str) -> None:
    """Import every module of a package, so that each registers what it defines."""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
