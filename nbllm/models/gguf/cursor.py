"""Reading GGUF's numbers, texts and arrays one after the other, never beyond the end of the file."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from nbllm.core.errors import WeightsError

# `enum gguf_metadata_value_type`: the fixed-size types as struct (and, array by array, NumPy) writes them.
_FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")


class Cursor:
    """A place in a GGUF file that moves as things are read.

    Args:
        data: The file, mapped.
        path: Its name, for errors.

    Attributes:
        position: The next byte.
        size: The file's length in bytes.
    """

    def __init__(self, data: mmap.mmap | bytes, path: Path) -> None:
        self._data = data
        self.path = path
        self.position = 0
        self.size = len(data)

    def check_room(self, nbytes: int, what: str) -> None:
        """Raise `WeightsError` unless `nbytes` are left."""
        if nbytes > self.size - self.position:
            raise WeightsError(
                f"The file ends within {what}: {nbytes:,} bytes are claimed, {self.size - self.position:,} are left.",
                where=self.path,
                hint="The file is cut off or damaged: fetch it again.",
            )

    def take(self, nbytes: int, what: str) -> bytes:
        """Return the next bytes."""
        self.check_room(nbytes, what)
        self.position += nbytes
        return self._data[self.position - nbytes : self.position]

    def number(self, code: str, what: str) -> Any:
        """Return the next number or truth value; `code` is its letter in the module struct."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def text(self, what: str) -> str:
        """Return the next text."""
        return self.texts(1, what)[0]

    def texts(self, count: int, what: str) -> list[str]:
        """Return the next texts, as quickly as a vocabulary needs."""
        self.check_room(count * _LENGTH.size, what)
        data, size, position = self._data, self.size, self.position
        out = []
        try:
            for _ in range(count):
                if size - position < _LENGTH.size:
                    break
                begin = position + _LENGTH.size
                position = begin + _LENGTH.unpack_from(data, position)[0]
                if position > size:
                    break
                out.append(data[begin:position].decode())
        except UnicodeDecodeError as error:
            raise WeightsError(f"A text of {what} is not UTF-8: {error}.", where=self.path) from None
        if len(out) < count:
            self.check_room(position - self.position, what)
            self.position = position
            self.check_room(_LENGTH.size, what)
        self.position = position
        return out

    def value(self, kind: int, key: str) -> Any:
        """Return the next metadata value of a type: a number, a truth value, a text or an array of them."""
        if kind in _FIXED:
            return self.number(_FIXED[kind], key)
        if kind == _TEXT:
            return self.text(key)
        if kind != _ARRAY:
            raise WeightsError(f"{key} is of the unknown type {kind}.", where=self.path)
        element, count = self.number("I", key), self.number("Q", key)
        if element == _TEXT:
            return self.texts(count, key)
        if element not in _FIXED:
            raise WeightsError(f"{key} is an array of the unknown type {element}.", where=self.path)
        dtype = np.dtype("<" + _FIXED[element]) if element != 7 else np.dtype(np.bool_)
        return np.frombuffer(self.take(count * dtype.itemsize, key), dtype)
