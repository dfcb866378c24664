"""Where runs are kept: making a run's folder, reading its record, finding runs."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbllm.core.errors import RunError, nearest
from nbllm.core.io import ASIDE, expand_user, is_link, read_json, sync_directory, write_json

RECORD = "run.json"
PROCESS_LOG = "process.log"  # what a trainer in a process of its own printed
SCHEMA = "nbllm-run/1"
MAX_RECORD = 64 << 20
MAX_NAME = 80
PARTS = ("events", "commands", "checkpoints", "logs")  # the folders of a run
FILES = (RECORD, "trainer.json", "trainer.lock", PROCESS_LOG)
_NAME = re.compile(r"\w(?:[\w.+ -]*[\w+-])?")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)  # Windows' devices


def create(folder: Path | str, name: str, record: Mapping[str, Any]) -> Path:
    """Make the folder of a new run, with its record, and return it; nothing that exists is touched.

    Args:
        folder: Where runs are kept; made when missing.
        name: The run's name. When it is taken, the next free of `name-2`, `name-3`, ... is used.
        record: What `run.json` says: configuration, settings, versions, seeds, fingerprints. Name, time of
            creation and schema are added.

    Raises:
        RunError: The name cannot be one, or the folder cannot be written.
    """
    folder = expand_user(folder)
    check_name(name)
    aside = folder / f"{ASIDE}{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        for part in PARTS:
            (aside / part).mkdir()
        return _move_in(aside, folder, name, record)
    except OSError as error:
        raise RunError(
            f"The run cannot be created: {error.strerror or error}.",
            where=folder,
            hint="Choose a folder that you may write, with some free space.",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _move_in(aside: Path, folder: Path, name: str, record: Mapping[str, Any]) -> Path:
    """Rename the filled folder to the first free name; who is first among several processes gets it."""
    number = 1
    while True:
        free = name if number == 1 else f"{name}-{number}"
        path = folder / free
        number += 1
        if path.exists():
            continue
        extra = {"schema": SCHEMA, "name": free, "created": time.time(), "host": socket.gethostname()}
        write_json(aside / RECORD, {**extra, **record, "schema": SCHEMA, "name": free})
        try:
            os.rename(aside, path)
        except OSError:
            if not path.exists():
                raise
            continue
        sync_directory(folder)
        return path


def check_name(name: str) -> str:
    """Return `name` if it can be a run's name on every system.

    Raises:
        RunError: It is empty, too long, holds `/` or other signs with a meaning, or is a device of Windows.
    """
    good = isinstance(name, str) and len(name) <= MAX_NAME and _NAME.fullmatch(name)
    if not good or _RESERVED.fullmatch(name):
        shown = repr(name)
        raise RunError(
            f"{shown if len(shown) <= 90 else shown[:87] + '...'} cannot be the name of a run.",
            hint=f"Use at most {MAX_NAME} letters, digits, '-', '_', '.', '+', spaces: {_suggest(name)!r}.",
        )
    return name


def _suggest(name: object) -> str:
    text = re.sub(r"[^\w.+ -]+", "-", str(name))[:MAX_NAME].strip("-. +")
    return text if _NAME.fullmatch(text) and not _RESERVED.fullmatch(text) else "my-run"


def read_record(path: Path | str) -> dict[str, Any]:
    """Return what a run's `run.json` says.

    Raises:
        RunError: There is no run, its record is damaged or from a newer nbllm, or the run holds links.
    """
    path = Path(path)
    file = path / RECORD
    refuse_links(path)
    try:
        record = read_json(file, MAX_RECORD, follow=False)
    except (FileNotFoundError, NotADirectoryError):
        raise RunError("There is no run here.", where=path, hint=what_there_is(path)) from None
    except OSError as error:
        raise RunError(f"The run's record cannot be read: {error.strerror}.", where=file) from error
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise RunError(
            "The run's record is damaged: it is not a JSON object.",
            where=file,
            hint="Its checkpoints are model directories: nb.load(path) may still open the newest.",
        )
    if record.get("schema") != SCHEMA:
        raise RunError(
            f"The run's record is of schema {str(record.get('schema'))[:40]!r}; this nbllm reads {SCHEMA!r}.",
            where=file,
            hint="Update nbllm.",
        )
    return record


def refuse_links(path: Path) -> None:
    """Check that a run lies in its folder whole: a link may lead to files of another run, or of nobody's run.

    Raises:
        RunError: One of its files or folders is a link.
    """
    links = [path / name for name in (*FILES, *PARTS) if is_link(path / name)]
    for part in () if links else PARTS:
        with contextlib.suppress(OSError), os.scandir(path / part) as entries:
            links += [path / part / entry.name for entry in entries if entry.is_symlink()]
    if links:
        raise RunError(
            f"{links[0].relative_to(path)} is a link, and a run holds no links.",
            where=links[0],
            hint="Put what it leads to in its place. A link to the folder of a whole run is fine.",
        )


def what_there_is(path: Path) -> str:
    """Return the hint for a path where no run is: the nearest name, or the runs inside."""
    names = [found.name for found in run_folders(path.parent)]
    if names:
        return nearest(path.name, names[:50])
    inside = [found.name for found in run_folders(path)]
    if inside:
        return f"This folder holds runs: {', '.join(inside[:10])}."
    return "nb.train(...) and `nbllm train` make runs; nb.runs(folder) lists those of a folder."


def run_folders(folder: Path | str) -> list[Path]:
    """Return the folders in `folder` that hold a run's record, by name; none when there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    except (OSError, ValueError):  # ValueError: no path can hold a null byte
        return []
    return [Path(folder) / name for name in sorted(names) if _holds_run(Path(folder) / name)]


def _holds_run(path: Path) -> bool:
    """Say whether a folder holds a run's record, or may: one that cannot be entered is listed with the reason."""
    try:
        os.lstat(path / RECORD)
    except PermissionError:
        return True
    except OSError:
        return False
    return True
