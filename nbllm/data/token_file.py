"""Binary files of integers, read piece by piece and known by their checksums."""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import DataError
from nbllm.core.io import open_regular

_CHUNK = 1 << 20


class TokenFile:
    """Reads integers from a file that other processes can reach.

    The file is not mapped into memory: a mapped file that is truncated ends the process with SIGBUS, and one that is
    overwritten changes under the reader. A read copies. If the file was written to since it was opened, it is compared
    with its checksum before what was read is used. A file that is deleted or replaced stays readable here.

    Args:
        path: The file.
        dtype: Of its elements, such as "<u2".
        count: How many elements it has.
        sha256: Checksum of its content, in hexadecimal.

    Raises:
        DataError: The file cannot be opened, or has another size.
    """

    def __init__(self, path: Path, *, dtype: str, count: int, sha256: str) -> None:
        self.path, self.count = path, count
        self._dtype, self._sha256 = np.dtype(dtype), sha256
        try:
            file = open_regular(path)
        except OSError as error:
            raise damaged(path, f"{path.name} cannot be opened ({error.strerror})") from error
        self._close = weakref.finalize(self, file.close)
        self._descriptor = file.fileno()
        self._lock = threading.Lock()
        self._stamp = self._look()
        size = count * self._dtype.itemsize
        if self._stamp[0] != size:
            raise damaged(path, f"{path.name} has {self._stamp[0]:,} bytes instead of {size:,}")

    def read(self, start: int, stop: int) -> NDArray[np.integer]:
        """Return the elements from `start` up to `stop`: (element).

        Raises:
            DataError: The file was changed.
        """
        out = np.empty(stop - start, self._dtype)
        self._fill(out, start)
        self._check_unchanged()
        return out

    def windows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.integer]:
        """Return `length` elements from each start on, where the first element follows the last: (window, length).

        Args:
            starts: (window) indices in `[0, count)`.
            length: At most `count`.

        Raises:
            DataError: The file was changed.
        """
        out = np.empty((len(starts), length), self._dtype)
        for row, start in zip(out, starts.tolist(), strict=True):
            before_end = min(length, self.count - start)
            self._fill(row[:before_end], start)
            self._fill(row[before_end:], 0)
        self._check_unchanged()
        return out

    def verify(self) -> None:
        """Read everything and compare it with the checksum.

        Raises:
            DataError: The content is not what was written.
        """
        digest, offset = hashlib.sha256(), 0
        while chunk := self._read_bytes(_CHUNK, offset):
            digest.update(chunk)
            offset += len(chunk)
        if digest.hexdigest() != self._sha256:
            raise damaged(self.path, f"the checksum of {self.path.name} does not match")

    def _look(self) -> tuple[int, int, int]:
        """Return size and times, at least one of which changes when somebody writes."""
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns

    def _check_unchanged(self) -> None:
        stamp = self._look()
        if stamp != self._stamp:
            self.verify()
            self._stamp = stamp

    def _fill(self, out: NDArray[np.integer], start: int) -> None:
        target = out.view(np.uint8)
        offset = start * self._dtype.itemsize
        while target.size:
            data = self._read_bytes(target.size, offset)  # one call reads at most 2 GiB
            if not data:
                raise damaged(self.path, f"{self.path.name} was truncated while it was in use")
            target[: len(data)] = np.frombuffer(data, np.uint8)
            target, offset = target[len(data) :], offset + len(data)

    def _read_bytes(self, count: int, offset: int) -> bytes:
        try:
            if hasattr(os, "pread"):  # Windows has none
                return os.pread(self._descriptor, count, offset)
            with self._lock:
                os.lseek(self._descriptor, offset, os.SEEK_SET)
                return os.read(self._descriptor, count)
        except OSError as error:
            raise damaged(self.path, f"{self.path.name} cannot be read ({error.strerror})") from error


class TokenShards:
    """Reads integers that lie in several files, one after the other, as if these were one.

    Args:
        files: The files, in their order.
    """

    def __init__(self, files: Sequence[TokenFile]) -> None:
        self._files = list(files)
        self._ends = np.cumsum([file.count for file in self._files])
        self.count = int(self._ends[-1])

    def read(self, start: int, stop: int) -> NDArray[np.integer]:
        """Return the elements from `start` up to `stop`: (element).

        Raises:
            DataError: A file was changed.
        """
        parts = []
        while True:
            number = min(int(np.searchsorted(self._ends, start, side="right")), len(self._files) - 1)
            file, begins = self._files[number], int(self._ends[number]) - self._files[number].count
            end = min(stop, int(self._ends[number]))
            parts.append(file.read(start - begins, end - begins))
            if end >= stop:
                return parts[0] if len(parts) == 1 else np.concatenate(parts)
            start = end

    def windows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.integer]:
        """Return `length` elements from each start on, where the first element follows the last: (window, length).

        Args:
            starts: (window) indices in `[0, count)`.
            length: At most `count`.

        Raises:
            DataError: A file was changed.
        """
        if len(self._files) == 1:
            return self._files[0].windows(starts, length)
        rows = []
        for start in starts.tolist():
            before_end = min(length, self.count - start)
            parts = [self.read(start, start + before_end)]
            if before_end < length:
                parts.append(self.read(0, length - before_end))
            rows.append(np.concatenate(parts))
        return np.stack(rows)

    def verify(self) -> None:
        """Read everything and compare it with the checksums.

        Raises:
            DataError: A file's content is not what was written.
        """
        for file in self._files:
            file.verify()


def damaged(file: Path, reason: str) -> DataError:
    """Return the error for a token store that cannot be used."""
    return DataError(
        f"The token store is damaged: {reason}.",
        where=file,
        hint="Pack the text again: a damaged store is replaced.",
    )
