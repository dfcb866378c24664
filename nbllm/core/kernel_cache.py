"""Numba's on-disk cache, keyed by all the source files that a kernel is compiled from."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def name_by_sources(function: Callable[..., Any]) -> None:
    """Rename a function that Numba compiles and caches, so that its name changes with any source file of its package.

    Numba reuses cached machine code, found by that name, as long as the function's own file is unchanged. But the
    functions that it calls are compiled into it, and may be in other files of the package. Machine code that was cached
    under earlier names is deleted.
    """
    file = Path(inspect.getfile(function))
    digest = _digest(file.parent)
    for cached in (file.parent / "__pycache__").glob(f"{file.stem}.{function.__qualname__}*.nb[ci]"):
        if digest not in cached.name:  # compiled from other sources
            with contextlib.suppress(OSError):
                cached.unlink()
    function.__qualname__ += f"_{digest}"


@functools.cache
def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def cached_kernels() -> Iterator[Path]:
    """Yield the files in which Numba keeps this package's machine code.

    They are beside the source files; where that folder cannot be written, in Numba's folder for the user, and where
    the environment variable NUMBA_CACHE_DIR names a folder, there.
    """
    from numba.core import config
    from numba.misc.appdirs import AppDirs

    package = Path(__file__).parent.parent
    elsewhere = [Path(AppDirs(appname="numba", appauthor=False).user_cache_dir)]
    if config.CACHE_DIR:
        elsewhere.append(Path(config.CACHE_DIR))
    for sources in {path.parent for path in package.rglob("*.py")}:
        digest = hashlib.sha1(
            str(sources).encode(), usedforsecurity=False
        ).hexdigest()  # as Numba names its folders
        for folder in (sources / "__pycache__", *(place / f"{sources.name}_{digest}" for place in elsewhere)):
            yield from folder.glob("*.nb[ci]")
