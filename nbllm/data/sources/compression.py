"""Open files, unpacking by suffix, so that a truncated or damaged archive is never mistaken for its end."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from nbllm.data.sources.omissions import Omissions

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

DAMAGE: tuple[type[Exception], ...] = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, OSError)
BLOCK = 1 << 17
PACKED_BLOCK = 1 << 14  # small: a hostile archive unpacks to ten thousand times as much


class _ZstdReader(io.RawIOBase):
    """Decompress zstd. The library's own reader ends in silence where a file was cut off; this one raises."""

    def __init__(self, file: IO[bytes]) -> None:
        import zstandard

        self._file = file
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._error = zstandard.ZstdError
        self._frame = self._new()
        self._pending = memoryview(b"")  # unpacked and not yet asked for
        self._packed = b""
        self._inside = False  # a frame has begun and not ended

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        while not self._pending:
            if not self._packed:
                self._packed = self._file.read(PACKED_BLOCK)
                if not self._packed:
                    if self._inside:
                        raise EOFError("the file ends inside a zstd frame")
                    return 0
            self._inside = True
            try:
                self._pending = memoryview(self._frame.decompress(self._packed))
            except self._error as error:
                raise OSError(str(error)) from error
            self._packed = b""
            if self._frame.eof:
                self._packed = self._frame.unused_data
                self._frame = self._new()
                self._inside = False
        count = min(len(view), len(self._pending))
        view[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _open_zstd(path: Path) -> IO[bytes]:
    return io.BufferedReader(_ZstdReader(open(path, "rb")), BLOCK)


OPENERS: dict[str, Callable[[Path], IO[bytes]]] = {
    ".gz": lambda path: cast("IO[bytes]", gzip.open(path, "rb")),
    ".zst": _open_zstd,
    ".zstd": _open_zstd,
    ".bz2": lambda path: cast("IO[bytes]", bz2.open(path, "rb")),
    ".xz": lambda path: cast("IO[bytes]", lzma.open(path, "rb")),
}


def inner_suffix(path: Path) -> str:
    """Return the lower-case suffix of the content: ".jsonl" for `a.jsonl.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in OPENERS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def open_binary(path: Path) -> IO[bytes]:
    """Open a file for reading, unpacked."""
    opener = OPENERS.get(path.suffix.lower())
    return open(path, "rb") if opener is None else opener(path)


def read_lines(path: Path, omissions: Omissions) -> Iterator[bytes]:
    """Yield the lines of a file, ends included; what lies behind a damage is left out."""
    number = 0
    try:
        with open_binary(path) as file:
            for line in file:
                number += 1
                yield line
    except DAMAGE as error:
        _damaged(path, omissions, error, f"{path}, after line {number}")


def read_whole(path: Path, omissions: Omissions) -> bytes | None:
    """Return the content of a file, or None when it is damaged and to be left out."""
    try:
        with open_binary(path) as file:
            return file.read()
    except DAMAGE as error:
        _damaged(path, omissions, error, str(path))
        return None


def _damaged(path: Path, omissions: Omissions, error: Exception, where: str) -> None:
    # The unpackers raise OSError without a number; with one, it is the system that refuses.
    if path.suffix.lower() not in OPENERS or getattr(error, "errno", None) is not None:
        omissions.add(
            "unreadable file",
            f"The file cannot be read: {getattr(error, 'strerror', None) or error}.",
            where=where,
            hint="Check that it is a file that you may read.",
        )
        return
    cut = isinstance(error, EOFError)
    omissions.add(
        "truncated archive" if cut else "damaged archive",
        f"The archive {'ends too early' if cut else 'is damaged'}: {error}.",
        where=where,
        hint="Download or compress it again.",
    )
