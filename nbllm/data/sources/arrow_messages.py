"""How large the compressed messages of an Arrow stream are when unpacked, read before anything is unpacked.

The buffers of a record batch may be compressed, each with its unpacked size in front. pyarrow unpacks them all at once
and knows no limit, so the sizes are read beforehand.

Source: the Arrow columnar format, "Serialization and Interprocess Communication (IPC)",
https://arrow.apache.org/docs/format/Columnar.html, and its Message.fbs and Schema.fbs; the layout of FlatBuffers'
tables and vectors.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO

FILE_MAGIC = b"ARROW1\0\0"  # before the stream that a file contains
_CONTINUATION = 0xFFFFFFFF  # before each message, but for those of Arrow before 0.15
_MAX_METADATA = 1 << 26
_DICTIONARY, _BATCH = 2, 3  # kinds of messages that have a body
_STORED = -1  # instead of a size: this buffer is not compressed


def unpacked_sizes(stream: IO[bytes]) -> Iterator[int]:
    """Yield how many bytes the body of each compressed message has when unpacked.

    Args:
        stream: Seekable, at the first message.

    Raises:
        pyarrow.ArrowInvalid: It is no Arrow stream.
    """
    import pyarrow as pa

    while (metadata := _read_metadata(stream)) is not None:
        try:
            message = _Table.root(metadata)
            body_length = message.number(3, "<q")
            header = message.table(2)
            kind = message.number(1, "<B")
            if kind == _DICTIONARY and header is not None:
                header = header.table(1)
            body = stream.tell()
            if kind in (_DICTIONARY, _BATCH) and header is not None and header.table(3) is not None:
                yield sum(_unpacked(stream, body + place, size) for place, size in header.pairs(2))
            stream.seek(body + max(0, body_length))
        except (struct.error, ValueError) as error:
            raise pa.ArrowInvalid("a message's metadata are damaged") from error


def _read_metadata(stream: IO[bytes]) -> bytes | None:
    """Return the FlatBuffer of the next message; None at the end."""
    prefix = stream.read(4)
    if len(prefix) == 4 and int.from_bytes(prefix, "little") == _CONTINUATION:
        prefix = stream.read(4)
    size = int.from_bytes(prefix, "little")
    if len(prefix) < 4 or size == 0:
        return None
    return stream.read(min(size, _MAX_METADATA))


def _unpacked(stream: IO[bytes], place: int, size: int) -> int:
    """Return the unpacked size of a compressed buffer."""
    if size < 8:
        return 0
    stream.seek(max(0, place))
    (unpacked,) = struct.unpack("<q", stream.read(8))
    return size if unpacked == _STORED else max(0, int(unpacked))


class _Table:
    """A table of a FlatBuffer: fields by number; its table of offsets says where each is, if it is there."""

    def __init__(self, data: bytes, place: int) -> None:
        self._data, self._place = data, place
        self._fields = place - self._at("<i", place)

    @classmethod
    def root(cls, data: bytes) -> _Table:
        """Return the table that a buffer begins with."""
        return cls(data, struct.unpack_from("<I", data)[0])

    def number(self, field: int, form: str) -> int:
        """Return a number; 0 where it is absent."""
        place = self._field(field)
        return 0 if place is None else self._at(form, place)

    def table(self, field: int) -> _Table | None:
        """Return a table; None where it is absent."""
        place = self._field(field)
        return None if place is None else _Table(self._data, place + self._at("<I", place))

    def pairs(self, field: int) -> Iterator[tuple[int, int]]:
        """Yield the entries of a vector of structures of two int64."""
        place = self._field(field)
        if place is not None:
            place += self._at("<I", place)
            for index in range(self._at("<I", place)):
                first = place + 4 + 16 * index
                yield self._at("<q", first), self._at("<q", first + 8)

    def _field(self, field: int) -> int | None:
        entry = 4 + 2 * field
        if entry >= self._at("<H", self._fields):
            return None
        offset = self._at("<H", self._fields + entry)
        return self._place + offset if offset else None

    def _at(self, form: str, place: int) -> int:
        if place < 0:
            raise struct.error("a place before the beginning")
        value: int = struct.unpack_from(form, self._data, place)[0]
        return value
