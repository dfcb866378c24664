"""Files that are either whole or absent: written aside, synced, renamed in."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any

from nbllm.core.errors import UserError

ASIDE = ".aside-"  # prefix of everything half-written; such leftovers may be deleted


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    with atomic_file(path) as aside:
        aside.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield the path of a file to write; on success it is synced and renamed to `path`.

    On any error it is removed and `path` is as it was.
    """
    aside = path.with_name(f"{ASIDE}{uuid.uuid4().hex}")
    try:
        yield aside
        sync_file(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused: JSON has neither."""
    try:
        data = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair has no UTF-8; JSON's escapes can hold it
        data = json.dumps(value, indent=2, allow_nan=False).encode()
    write_atomic(path, data + b"\n")


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a folder to fill; on success it is synced and renamed to `path`.

    On any error the folder is removed.

    Raises:
        OSError: The disk is full, or there is something at `path`, which stays as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{ASIDE}{uuid.uuid4().hex}")
    aside.mkdir()
    try:
        yield aside
        _finish(aside)
        os.rename(aside, path)  # this replaces no files: another process may have made the folder meanwhile
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_directory(path.parent)


@contextlib.contextmanager
def atomic_files(directory: Path, stale: Callable[[Path], Iterable[Path]]) -> Iterator[Path]:
    """Yield a folder to fill; on success its files are synced and take their places in `directory`.

    There they replace files of the same names; everything else in `directory` stays. On any error `directory` is as
    it was. Each file is replaced at once, all of them one after another: whoever is killed in between leaves some old
    and some new files.

    Args:
        directory: An existing folder.
        stale: Given the filled folder, says which files of `directory` are to go when the new ones come.
    """
    aside = directory / f"{ASIDE}{uuid.uuid4().hex}"
    aside.mkdir()
    try:
        yield aside
        _finish(aside)
        _exchange(aside, directory, list(stale(aside)))
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    sync_directory(directory)


def _finish(folder: Path) -> None:
    """Sync a filled folder; give its files the mode that the umask grants, whichever library wrote them."""
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)
            sync_file(file)
    sync_directory(folder)


def _exchange(new: Path, directory: Path, stale: list[Path]) -> None:
    """Move files from `new` into `directory` and delete the stale ones; on any error, put back what was there."""
    moves = [(file, directory / file.relative_to(new)) for file in sorted(new.rglob("*")) if file.is_file()]
    replaced = directory / f"{ASIDE}{uuid.uuid4().hex}"
    replaced.mkdir()
    kept: list[tuple[Path, Path]] = []  # a file of `directory`, and its second name among the replaced
    made: set[Path] = set()
    try:
        for place in [*stale, *(place for _, place in moves)]:
            if place.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(place))
            if os.path.lexists(place):
                kept.append((place, replaced / str(len(kept))))
                _second_name(*kept[-1])
        for file, place in moves:
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)
            made.add(place)
        for place in set(stale) - made:
            place.unlink(missing_ok=True)
    except BaseException:
        for place, second in kept:
            if os.path.lexists(second):
                os.replace(second, place)
        for place in made - {place for place, _ in kept}:
            place.unlink()
        shutil.rmtree(replaced, ignore_errors=True)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _second_name(file: Path, second: Path) -> None:
    """Give a file a second name; where file systems cannot, move it."""
    try:
        os.link(file, second, follow_symlinks=False)
    except (OSError, NotImplementedError):
        os.replace(file, second)


def link_or_copy(file: Path, second: Path) -> None:
    """Give a file a second name; where file systems cannot, copy it.

    Raises:
        OSError: The disk is full, or cannot be written.
    """
    try:
        os.link(file, second)
    except (OSError, NotImplementedError):
        shutil.copyfile(file, second)


def open_regular(path: Path, *, follow: bool = True) -> BufferedReader:
    """Open a regular file for reading; a pipe or a device would block, or never end.

    Args:
        path: The file.
        follow: Whether a link is followed.

    Raises:
        OSError: It is not a regular file, or cannot be opened.
    """
    # Without O_NONBLOCK, opening a pipe waits for a writer; checking the path first would be a race.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(_open_regular(path, flags, follow=follow), "rb")


def open_log(path: Path) -> FileIO:
    """Open a regular file for appending, unbuffered, and make it when it is missing; a link is not followed.

    Raises:
        OSError: It is not a regular file, or cannot be opened.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(_open_regular(path, flags, follow=False), "ab", buffering=0)


def _open_regular(path: Path, flags: int, *, follow: bool) -> int:
    descriptor = os.open(path, flags | (0 if follow else getattr(os, "O_NOFOLLOW", 0)), 0o666)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_link(path: Path) -> bool:
    """Say whether a path is a symbolic link, or a junction of Windows."""
    return os.path.islink(path) or (hasattr(os.path, "isjunction") and os.path.isjunction(path))


def read_regular(path: Path, most: int, *, follow: bool = True) -> bytes:
    """Return the content of a regular file of at most `most` bytes.

    Raises:
        OSError: It is longer, not a regular file, or cannot be read.
    """
    with open_regular(path, follow=follow) as file:
        # No more than there is, for `read` first allocates as much as it is asked for; the rest if it has grown.
        data = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)
        while len(data) <= most and (block := file.read(min(most - len(data) + 1, 1 << 16))):
            data += block
    if len(data) > most:
        raise OSError(errno.EFBIG, f"More than {most:,} bytes", str(path))
    return data


def read_json(path: Path, most: int, *, follow: bool = True) -> Any:
    """Return the value that a regular JSON file of at most `most` bytes holds.

    Raises:
        OSError: It is longer, not a regular file, or cannot be read.
        ValueError: It is not UTF-8 or not JSON, holds a number of thousands of digits, or is nested too deeply.
    """
    data = read_regular(path, most, follow=follow)
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Return a path with the home folder for `~`; `~name` of a user who does not exist stays as it is."""
    return Path(os.path.expanduser(path))


def check_utf8(path: Path) -> None:
    """Refuse a path that is not UTF-8: the libraries that read and write models cannot open it.

    Raises:
        UserError: Its bytes are not UTF-8.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise UserError(
            "The name of this file or folder is not UTF-8.", where=path, hint="Rename it, or choose another."
        ) from None


def sync_file(path: Path) -> None:
    """Ask the system to put a file's content on the disk."""
    # Windows syncs only what may be written; folders can only be read.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Ask the system to put a folder's entries on the disk; where folders cannot be synced, do nothing."""
    with contextlib.suppress(OSError):
        sync_file(path)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_leftovers(folder: Path) -> None:
    """Delete what an interrupted `write_atomic` or `atomic_directory` left in `folder`."""
    for entry in folder.glob(f"{ASIDE}*"):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
