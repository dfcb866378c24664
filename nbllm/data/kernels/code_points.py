"""Code points in UTF-8 bytes, and what a table says of each.

The table (see `nbllm.data.deduplication.characters`) has one uint32 a code point: its lower-case form, what it is in a
word, and flags. Bytes that are no valid UTF-8 read as U+FFFD, one a byte, and a code point beyond the table is like it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.jit import kernel

# Fields of an entry of the table.
LOWER = np.uint32(0x1FFFFF)  # the lower-case code point
KIND_SHIFT = np.uint32(21)
KIND = np.uint32(0x3)
SPACE = np.uint32(1 << 24)  # white space
COMPOSES = np.uint32(1 << 25)  # not in NFC, or may not be after another code point
COMBINES = np.uint32(1 << 26)  # its combining class is not 0, so that its place among marks matters

# What a code point is in a word.
SEPARATOR, WORD, CHARACTER, MARK = np.uint32(0), np.uint32(1), np.uint32(2), np.uint32(3)

REPLACEMENT = 0xFFFD


@kernel
def decode(data: NDArray[np.uint8], start: int, stop: int) -> tuple[int, int]:
    """Return the code point at `start` and where the next begins; an invalid byte is U+FFFD of length 1."""
    first = int(data[start])
    if first < 0x80:
        return first, start + 1
    if first < 0xC2 or first > 0xF4:
        return REPLACEMENT, start + 1
    length = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
    if start + length > stop:
        return REPLACEMENT, start + 1
    second = int(data[start + 1])
    low, high = 0x80, 0xBF
    if first == 0xE0:
        low = 0xA0  # shorter forms exist
    elif first == 0xED:
        high = 0x9F  # surrogates
    elif first == 0xF0:
        low = 0x90
    elif first == 0xF4:
        high = 0x8F  # beyond U+10FFFF
    if second < low or second > high:
        return REPLACEMENT, start + 1
    point = ((first & (0x7F >> length)) << 6) | (second & 0x3F)
    for place in range(start + 2, start + length):
        byte = int(data[place])
        if byte & 0xC0 != 0x80:
            return REPLACEMENT, start + 1
        point = (point << 6) | (byte & 0x3F)
    return point, start + length


@kernel
def mark_uncomposed(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    valid: NDArray[np.bool_],
    table: NDArray[np.uint32],
    marked: NDArray[np.bool_],
) -> None:
    """Mark the documents that may not be in NFC; all others are.

    Args:
        data: (byte) the documents' bytes.
        offsets: (document + 1) where each begins.
        valid: (document) whether it is no null, which has no text.
        table: (code point) see the module.
        marked: (document) buffer to fill.
    """
    size = table.shape[0]
    for document in range(offsets.shape[0] - 1):
        place, stop = offsets[document], offsets[document + 1] if valid[document] else offsets[document]
        marked[document] = False
        combining = False
        while place < stop:
            if data[place] < 0x80:
                combining = False
                place += 1
                continue
            point, place = decode(data, place, stop)
            entry = table[point] if point < size else np.uint32(0)
            if entry & COMPOSES or (combining and entry & COMBINES):
                marked[document] = True
                break
            combining = entry & COMBINES != 0
