"""A digest of the code that a step is made of: after a change of it, what it wrote is not used again."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
from pathlib import Path

from nbllm.data.pipeline.step import Step

PACKAGE = "nbllm.data"


def code_digest(kind: type[Step]) -> str:
    """Return the SHA-256 of the files that a class is written in, with what they import of `nbllm.data`."""
    digest = hashlib.sha256()
    for file in sorted(set().union(*(_files(base.__module__) for base in kind.__mro__))):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    if kind.__module__ == "__main__":  # a notebook: its cells are no file
        try:
            digest.update(inspect.getsource(kind).encode())
        except (OSError, TypeError):
            digest.update(kind.__qualname__.encode())
    return digest.hexdigest()


@functools.cache
def _files(module: str) -> frozenset[Path]:
    """Return a module's file, and those of the modules of `nbllm.data` that it imports, directly or not."""
    found: set[Path] = set()
    waiting = [module]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        file = _file_of(name)
        if file is None:
            continue
        found.add(file)
        waiting += [other for other in _imports(file) if other.startswith(PACKAGE)]
    return frozenset(found)


def _file_of(module: str) -> Path | None:
    if module == "__main__":
        return None
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


def _imports(file: Path) -> set[str]:
    """Return the modules that a file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names
