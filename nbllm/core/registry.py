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
        packages: Names of modules, or of packages whose modules register entries; they are imported at the first
            look-up, so that a registry can have entries in packages above its own.
    """

    def __init__(self, kind: str, *packages: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._packages = list(packages)

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers its argument under `name`."""

        def enter(entry: T) -> T:
            assert name not in self._entries, f"{self.kind} {name!r} is registered twice"
            self._entries[name] = entry
            return entry

        return enter

    def _known(self) -> dict[str, T]:
        while self._packages:  # taken out first: the modules may look something up while they are imported
            import_modules(self._packages.pop())
        return self._entries

    def __getitem__(self, name: str) -> T:
        known = self._known()
        if name not in known:
            raise UserError(f"There is no {self.kind} named {name!r}.", hint=nearest(name, known))
        return known[name]

    def __contains__(self, name: object) -> bool:
        return name in self._known()

    def __iter__(self) -> Iterator[str]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())


def import_modules(package: str) -> None:
    """Import a module, or a package and every module of it, so that each registers what it defines."""
    for module in pkgutil.iter_modules(getattr(importlib.import_module(package), "__path__", [])):
        importlib.import_module(f"{package}.{module.name}")
