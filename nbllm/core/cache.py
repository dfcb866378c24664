"""The cache folder, for what can be downloaded or computed again: token stores, large texts, published models."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from nbllm.core.errors import CacheError
from nbllm.core.io import ASIDE, expand_user

ABANDONED_AFTER = 24 * 3600.0  # seconds; no file takes that long to write


def cache_folder() -> Path:
    """Return `$NBLLM_CACHE`, or `~/.cache/nbllm`."""
    return expand_user(os.environ.get("NBLLM_CACHE") or "~/.cache/nbllm")


def make_folder(folder: Path) -> Path:
    """Create `folder` and check that it can be written.

    Raises:
        CacheError: It cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError as error:
        raise unwritable(folder, error) from error
    if not writable:
        raise unwritable(folder, "it is read-only")
    return folder


def unwritable(folder: Path, reason: object, *, variable: str = "NBLLM_CACHE") -> CacheError:
    """Return the error for a cache that cannot be written; `variable` is the environment variable of its folder."""
    return CacheError(
        f"The cache cannot be written: {reason}.",
        where=folder,
        hint=f"Free some disk space, or set the environment variable {variable} to a folder that can be written.",
    )


def is_abandoned(path: Path) -> bool:
    """Whether a killed process left this temporary file or folder, more than a day ago."""
    if not path.name.startswith(ASIDE):
        return False
    with contextlib.suppress(OSError):
        return time.time() - path.lstat().st_mtime > ABANDONED_AFTER
    return False


def remove_abandoned(folder: Path) -> None:
    """Delete the temporary files that a killed process left in `folder` more than a day ago."""
    for entry in filter(is_abandoned, folder.glob(f"{ASIDE}*")):
        with contextlib.suppress(OSError):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
