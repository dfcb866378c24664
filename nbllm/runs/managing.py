"""Renaming and deleting runs.

Only what a run consists of is deleted, by name. Links in its folder are removed, never followed; a folder that is
itself a link is left alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nbllm.core.errors import RunError, listed
from nbllm.core.io import ASIDE, expand_user, is_link, sync_directory, write_json
from nbllm.runs import checkpoint, commands, events, rank_logs
from nbllm.runs.liveness import LIVE, judge, waits_in_queue
from nbllm.runs.lock import HANDOVER_SECONDS, HOLDER, LOCK, TrainerLock, is_held
from nbllm.runs.skim import newest_session
from nbllm.runs.store import PROCESS_LOG, RECORD, check_name, read_record, run_folders
from nbllm.runs.summary import parent_name

_ASIDE = re.compile(re.escape(ASIDE) + "[0-9a-f]{32}")
_PARTS = {  # by folder in the run's own, how what is ours is named
    checkpoint.FOLDER: checkpoint.NAME,
    commands.FOLDER: commands.NAME,  # before the next: where it is a link, nothing behind it is looked at
    f"{commands.FOLDER}/{commands.REJECTED}": commands.NAME,
    events.FOLDER: events.NAME,
    rank_logs.FOLDER: rank_logs.NAME,
    "": re.compile(re.escape(PROCESS_LOG)),
}


def rename(path: Path | str, name: str) -> Path:
    """Give a run another name, and return its new folder; its forks and replays name it by the new one.

    Raises:
        RunError: It is live, its folder is a link, the name is taken or cannot be one, or the folder cannot be renamed.
    """
    path = _own_folder(path, "renamed")
    check_name(name)
    record = read_record(path)
    target = path.with_name(name)
    if target == path:
        return path
    if os.path.lexists(target) and not (target.exists() and target.samefile(path)):  # "Tour" for "tour"
        raise RunError(f"There is {name!r} already.", where=target, hint="Choose another name.")
    try:
        # The lock is a file in the folder; Windows renames no folder with an open file in it.
        with _not_live(path, record, "renamed"):
            pass
        _move(path, target, record)
    except OSError as error:
        raise _cannot("renamed", path, error) from error
    _name_anew(target.parent, path.name, name)
    return target


def delete(path: Path | str) -> list[Path]:
    """Delete a run: its record, events, commands and checkpoints. Its forks and replays are whole without it.

    Returns:
        The files in its folder that are no part of a run; they and the folder stay.

    Raises:
        RunError: There is no run, it is live, its folder is a link, or something cannot be deleted; doing it again
            deletes the rest.
    """
    path = _own_folder(path, "deleted")
    record: dict[str, Any] = {}
    if os.path.lexists(path / RECORD):
        with contextlib.suppress(RunError):  # a damaged run can be deleted too
            record = read_record(path)
    else:
        record = read_record(path)  # says that there is none
    try:
        if is_link(path / LOCK):  # taking the lock would open what it leads to
            (path / LOCK).unlink()
        with _not_live(path, record, "deleted"):
            for folder, pattern in _PARTS.items():
                for entry in _own_entries(path / folder, pattern):
                    _remove(entry)
            (path / RECORD).unlink()  # last: what was interrupted is still a run, which can be deleted
        for name in (LOCK, HOLDER):
            (path / name).unlink(missing_ok=True)
        left = foreign_files(path)
        for folder, _, _ in os.walk(path, topdown=False):
            with contextlib.suppress(OSError):  # it is not empty
                os.rmdir(folder)
        sync_directory(path.parent)
    except OSError as error:
        raise _cannot("deleted", path, error) from error
    _name_anew(path.parent, path.name, f"{path.name} (deleted)")  # the brackets make it no run's name
    return left


def check_replaceable(path: Path | str) -> None:
    """Check that a run can be replaced by another of its name, or that the name is free.

    Raises:
        RunError: It is live, its folder is a link, or holds what is no part of a run.
    """
    if not os.path.lexists(expand_user(path)):
        return
    path = _own_folder(path, "replaced")
    record = read_record(path)
    with _not_live(path, record, "replaced"):
        pass
    left = foreign_files(path)
    if left:
        names = listed([str(file.relative_to(path)) for file in left], most=5)
        raise RunError(
            f"{path.name} is not replaced: its folder holds what is no part of the run: {names}.",
            where=path,
            hint="Move that to another folder, or choose another name.",
        )


def replace(path: Path, name: str) -> Path:
    """Give a new run, which nobody trains yet, the name of an ended one, which is deleted; return its folder.

    Raises:
        RunError: As `check_replaceable`, or the folder cannot be renamed; the new run then keeps its name.
    """
    target = path.with_name(name)
    if target == path:
        return path
    if os.path.lexists(target):
        check_replaceable(target)
        delete(target)
    try:
        _move(path, target, read_record(path))
    except OSError as error:
        raise _cannot("renamed", path, error) from error
    return target


def _own_folder(path: Path | str, done: str) -> Path:
    """Return a run's folder without links on the way to it.

    Raises:
        RunError: The folder is a link: the run it leads to may be in use under its own name.
    """
    path = expand_user(path).absolute()
    if is_link(path):
        raise RunError(
            f"{path.name} is a link, and is not {done}.",
            where=path,
            hint=f"The run itself is {path.resolve()}; to remove just the link, use the file browser or a shell.",
        )
    return path.resolve()


def _move(path: Path, target: Path, record: Mapping[str, Any]) -> None:
    os.rename(path, target)
    write_json(target / RECORD, {**record, "name": target.name})
    sync_directory(target.parent)


def foreign_files(path: Path) -> list[Path]:
    """Return the files in a run's folder that `delete` leaves, since they are no part of a run."""
    ours = {path / name for name in (RECORD, LOCK, HOLDER)}
    for folder, pattern in _PARTS.items():
        ours.update(_own_entries(path / folder, pattern))
    found = []
    for here, subfolders, files in os.walk(path):
        subfolders[:] = [name for name in subfolders if Path(here, name) not in ours]
        names = files + [name for name in subfolders if is_link(Path(here, name))]
        found += [Path(here, name) for name in names if Path(here, name) not in ours]
    return sorted(found)


@contextlib.contextmanager
def _not_live(path: Path, record: dict[str, Any], done: str) -> Iterator[None]:
    """Hold the run so that nobody trains it meanwhile.

    Raises:
        RunError: Somebody does.
    """
    state = judge(newest_session(path, record), path, record)
    if state in LIVE and not (state == "starting" and waits_in_queue(record) and not is_held(path)):
        raise RunError(
            f"{path.name} is {state}; a live run cannot be {done}.",
            where=path,
            hint="If nothing is about to train it, try again in two minutes."
            if state == "starting" and not is_held(path)
            else "Stop it first: run.stop().",
        )
    with TrainerLock(path, HANDOVER_SECONDS):
        yield


def _own_entries(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """Return what in a part of a run is named like ours; where the part is a link, that alone."""
    if is_link(folder):
        return [folder]
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in names if pattern.fullmatch(name) or _ASIDE.fullmatch(name)]


def _remove(path: Path) -> None:
    if path.is_dir() and not is_link(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _name_anew(folder: Path, name: str, new: str) -> None:
    """Let the forks and replays of a run name it by its new name: another may be given the old one."""
    for path in run_folders(folder):
        with contextlib.suppress(RunError, OSError):  # unreadable, or not ours to write
            record = read_record(path)
            parent, replay = record.get("parent"), record.get("replay")
            changed = dict(record)
            if isinstance(parent, dict) and parent_name(parent) == name:
                changed["parent"] = {**parent, "name" if "name" in parent else "run": new}
            if isinstance(replay, dict) and replay.get("of") == name:
                changed["replay"] = {**replay, "of": new}
            if changed != record:
                write_json(path / RECORD, changed)


def _cannot(done: str, path: Path, error: OSError) -> RunError:
    return RunError(
        f"{path.name} cannot be {done}: {error.strerror or error}.",
        where=path,
        hint="You need the right to write there.",
    )
