"""Zstandard decompression that notices truncated files."""

from __future__ import annotations

import io
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK = 1 << 17
WINDOW = 1 << 31  # what `zstd --long=31` looks back, which Reddit's dumps are packed with
PACKED_BLOCK = 1 << 11  # small: a hostile archive unpacks to forty thousand times as much at once


class _ZstdReader(io.RawIOBase):
    """Decompress zstd. The library's own reader ends silently at the end of a truncated file; this one raises."""

    def __init__(self, file: IO[bytes]) -> None:
        import zstandard

        self._file = file
        self._new = zstandard.ZstdDecompressor(max_window_size=WINDOW).decompressobj
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


def open_zstd(file: IO[bytes]) -> IO[bytes]:
    """Return a reader of what `file` holds packed; closing it closes `file`."""
    return io.BufferedReader(_ZstdReader(file), BLOCK)
