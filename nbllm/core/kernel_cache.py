"""Which machine code on the disk is a kernel's own."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any


def name_by_sources(function: Callable[..., Any]) -> None:
    """Give a function that Numba compiles and keeps a name that changes with any file of its package.

    Numba takes kept machine code, found by that name, while the function's own file is unchanged; but what the
    function calls is compiled into it, and may lie in the files beside. What is kept under earlier names is deleted.
    """
    file = Path(inspect.getfile(function))
    digest = _digest(file.parent)
    for kept in (file.parent / "__pycache__").glob(f"{file.stem}.{function.__qualname__}*.nb[ci]"):
        if digest not in kept.name:  # of other sources than these
            with contextlib.suppress(OSError):
                kept.unlink()
    function.__qualname__ += f"_{digest}"


@functools.cache
def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
