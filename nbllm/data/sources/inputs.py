"""A file to read, on disk or inside a ZIP archive: opened, unpacked by suffix, counted."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import IO, cast

from nbllm.core.errors import DataError
from nbllm.core.io import open_regular
from nbllm.core.terminal import visible_line
from nbllm.data.sources.budget import CountedReader
from nbllm.data.sources.reading import Reading
from nbllm.data.sources.zstd import open_zstd

DAMAGE: tuple[type[Exception], ...] = (
    EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zipfile.BadZipFile, OSError,
)  # fmt: skip
BLOCK = 1 << 17
MAX_DOCUMENT_BYTES = (1 << 31) - 1  # an Arrow string column counts its bytes in 32 bits

UNPACKERS: dict[str, Callable[[IO[bytes]], IO[bytes]]] = {
    ".gz": lambda file: cast("IO[bytes]", gzip.GzipFile(fileobj=file)),
    ".zst": open_zstd,
    ".zstd": open_zstd,
    ".bz2": lambda file: cast("IO[bytes]", bz2.BZ2File(file)),
    ".xz": lambda file: cast("IO[bytes]", lzma.LZMAFile(file)),
}


def inner_suffix(name: str | PurePath) -> str:
    """Return the lower-case suffix of the content: ".jsonl" for `a.jsonl.gz`."""
    suffixes = [suffix.lower() for suffix in PurePath(name).suffixes]
    if suffixes and suffixes[-1] in UNPACKERS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@dataclasses.dataclass(frozen=True)
class Input:
    """A file to read, or a member of an archive.

    Attributes:
        name: Short, for the column `source`.
        where: Full, for messages.
        packed: The suffix of its packing, ".gz"; "" where it is not packed.
        suffix: The suffix of its content, ".jsonl".
        open: Opens it, as it is.
        size: Bytes on disk.
        member: Whether it lies inside an archive, where seeking is slow.
    """

    name: str
    where: str
    packed: str
    suffix: str
    open: Callable[[], IO[bytes]]
    size: int
    member: bool = False

    @classmethod
    def of_file(cls, path: Path, name: str) -> Input:
        """Return the input for a file; only a regular file is ever opened."""
        try:
            size = os.stat(path).st_size
        except OSError:
            size = 0  # opening it says what is wrong
        packed = path.suffix.lower() if path.suffix.lower() in UNPACKERS else ""
        # A file name may hold bytes that are not UTF-8, which Python shows as lone surrogates.
        return cls(
            visible_line(name),
            visible_line(path),
            packed,
            inner_suffix(path),
            lambda: open_regular(path),
            size,
        )

    def unpacked(self, reading: Reading) -> io.BufferedReader:
        """Open it for reading its content; what is read is counted."""
        file = self.open()
        try:
            content = UNPACKERS[self.packed](file) if self.packed else file
        except BaseException:
            file.close()
            raise
        return io.BufferedReader(CountedReader((content, file), reading.budget), BLOCK)

    def read(self, reading: Reading, *, partial: bool = False) -> bytes | None:
        """Return the whole content, or None when it is damaged and to be left out.

        Args:
            reading: Told of the damage.
            partial: Whether to return the whole lines before the damage instead of None.

        Raises:
            DataError: It is too large for one document.
        """
        content = bytearray()
        try:
            with self.unpacked(reading) as file:
                while block := file.read(BLOCK):
                    content += block
                    if len(content) > MAX_DOCUMENT_BYTES:
                        raise DataError(
                            f"One document has more than {MAX_DOCUMENT_BYTES:,} bytes, which is the most.",
                            where=self.where,
                            hint="Cut it into documents: sample_by='paragraph', or write it as JSON Lines.",
                        )
        except DAMAGE as error:
            lines = content.count(b"\n")
            self.report(reading, error, f"{self.where}, after line {lines}")
            return bytes(content[: content.rfind(b"\n") + 1]) if partial else None
        return bytes(content)

    def report(self, reading: Reading, error: Exception, where: str) -> None:
        """Say that the file cannot be read, as `error` has it."""
        # The unpackers raise OSError without a number; with one, it is the system that refuses.
        archive = bool(self.packed) or isinstance(error, (zlib.error, zipfile.BadZipFile))
        if not archive or getattr(error, "errno", None) is not None:
            reading.omissions.add(
                "unreadable file",
                f"The file cannot be read: {getattr(error, 'strerror', None) or error}.",
                where=where,
                hint="Check that it is a regular file that you may read.",
            )
            return
        cut = isinstance(error, EOFError)
        reading.omissions.add(
            "truncated archive" if cut else "damaged archive",
            f"The archive {'ends too early' if cut else 'is damaged'}: {error}.",
            where=where,
            hint="Download or compress it again.",
        )
