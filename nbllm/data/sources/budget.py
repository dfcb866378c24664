"""How much may be unpacked: a small file must not fill the memory or the disk."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING

from nbllm.core.errors import UserError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Without max_bytes: text packs to a tenth, repetitive logs to a fiftieth of their size.
EXPANSION = 100
LEAST_BYTES = 1 << 26


class LimitReachedError(Exception):
    """More was unpacked than allowed; what was read before is good."""


class Budget:
    """Counts the bytes that are read, and raises beyond the limit.

    Args:
        max_bytes: The limit; None allows a hundred times the size that the opened files have on disk, and 64 MiB.

    Raises:
        UserError: `max_bytes` is not a positive whole number.
    """

    def __init__(self, max_bytes: int | None) -> None:
        if max_bytes is not None and (
            isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1
        ):
            raise UserError(f"max_bytes must be a whole number of bytes, at least 1, not {max_bytes!r}.")
        self.max_bytes = max_bytes
        self.position = 0  # in the file that is read, as it is on the disk
        self._packed = 0
        self._used = 0

    @property
    def limit(self) -> int:
        """How many bytes may be read in all."""
        return LEAST_BYTES + EXPANSION * self._packed if self.max_bytes is None else self.max_bytes

    def open(self, size: int) -> None:
        """Take account of a file of `size` bytes on disk."""
        self._packed += size

    def spend(self, count: int) -> None:
        """Take account of `count` bytes that were read.

        Raises:
            LimitReachedError: They are more than is left.
        """
        self._used += count
        self.check(0)

    def check(self, count: int) -> None:
        """Raise `LimitReachedError` where `count` more bytes would be too many."""
        if self._used + count > self.limit:
            raise LimitReachedError


class CountedReader(io.RawIOBase):
    """Reads from another binary stream, and spends what it reads; closing it closes all of `streams`.

    Args:
        streams: The one to read from, then those below it.
        budget: Where to spend.
    """

    def __init__(self, streams: Sequence[IO[bytes]], budget: Budget) -> None:
        self._streams, self._budget = streams, budget
        # What comes at once, so that nothing that was read is lost where a later part is damaged.
        self._read: Callable[[int], bytes] = getattr(streams[0], "read1", streams[0].read)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read into `buffer`; return how many bytes."""
        view = memoryview(buffer).cast("B")
        data = self._read(len(view))
        self._budget.spend(len(data))
        self._budget.position = self._streams[-1].tell()
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close all streams."""
        for stream in self._streams:
            stream.close()
        super().close()
