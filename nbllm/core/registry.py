"""Registries: entries of one kind (sources, families, schedules, metrics), looked up by name."""

from __future__ import annotations

import importlib
import pkgutil
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from nbllm.core.errors import UserError, nearest

T = TypeVar("T")

_registries: weakref.WeakSet[Registry[Any]] = weakref.WeakSet()
_adopted: dict[str, dict[str, Any]] = {}  # by kind, for registries that are made later


class Registry(Generic[T]):
    """A mapping from names to registered entries.

    Args:
        kind: What is registered, for error messages: "schedule", "metric".
        packages: Names of modules, or of packages whose modules register entries; they are imported at the first
            look-up, so that a registry can have entries in packages above its own.
    """

    def __init__(self, kind: str, *packages: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = dict(_adopted.get(kind, {}))
        self._packages = list(packages)
        _registries.add(self)

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


def entries_from_outside() -> dict[str, dict[str, Any]]:
    """Return by kind and name what is registered by code outside nbllm: by a notebook's cells, say."""
    found: dict[str, dict[str, Any]] = {}
    for registry in list(_registries):
        for name, entry in registry._entries.items():
            if not str(getattr(entry, "__module__", "nbllm")).startswith("nbllm"):
                found.setdefault(registry.kind, {})[name] = entry
    return found


def adopt(entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Register what `entries_from_outside` returned in another process, also in registries that are made later."""
    for kind, by_name in entries.items():
        _adopted.setdefault(kind, {}).update(by_name)
        for registry in list(_registries):
            if registry.kind == kind:
                registry._entries.update(by_name)


def import_modules(package: str) -> None:
    """Import a module, or a package and every module of it, so that each registers what it defines."""
    for module in pkgutil.iter_modules(getattr(importlib.import_module(package), "__path__", [])):
        importlib.import_module(f"{package}.{module.name}")
