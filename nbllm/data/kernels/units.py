"""The parts of texts that are compared exactly: documents, paragraphs, lines, and 128-bit hashes of them.

The hash is no cryptographic one: two parts that differ have the same with a probability of about 2^-128, unless
somebody made them for it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.code_points import SPACE, decode
from nbllm.data.kernels.jit import kernel
from nbllm.data.kernels.windows import mix

DOCUMENT, PARAGRAPH, LINE = 0, 1, 2
SEED_1, SEED_2 = np.uint64(0xCBF29CE484222325), np.uint64(0x9AE16A3B2F90404F)
PRIME_1, PRIME_2 = np.uint64(0x9FB21C651E98DF25), np.uint64(0xC2B2AE3D27D4EB4F)
NEWLINE, BLANK = np.uint8(10), np.uint64(32)


@kernel
def is_blank(data: NDArray[np.uint8], start: int, stop: int, table: NDArray[np.uint32]) -> bool:
    """Return whether `data[start:stop]` is nothing but white space."""
    while start < stop:
        point, start = decode(data, start, stop)
        if point >= table.shape[0] or not table[point] & SPACE:
            return False
    return True


@kernel
def line_end(data: NDArray[np.uint8], start: int, stop: int) -> int:
    """Return where the line that begins at `start` ends: behind its line break, or at `stop`."""
    while start < stop:
        if data[start] == NEWLINE:
            return start + 1
        start += 1
    return stop


@kernel
def find_units(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    valid: NDArray[np.bool_],
    table: NDArray[np.uint32],
    level: int,
    units: NDArray[np.int64],
) -> int:
    """Write where the parts of documents are.

    A document is one part, a null is none. A line ends behind its line break. A paragraph is a run of lines that are
    not blank, and ends behind the blank lines that follow. Blank lines, and those before the first paragraph, are no
    part.

    Args:
        data: (byte) the documents' bytes.
        offsets: (document + 1) where each begins.
        valid: (document) whether it is no null.
        table: (code point) see `kernels.code_points`.
        level: DOCUMENT, PARAGRAPH or LINE.
        units: (part, 3) buffer to fill: document, first byte within it, byte behind the last; at least as many as
            there are documents and line breaks.

    Returns:
        The number of parts.
    """
    write = 0
    for document in range(valid.shape[0]):
        if not valid[document]:
            continue
        base, stop = int(offsets[document]), int(offsets[document + 1])
        if level == DOCUMENT:
            units[write, 0], units[write, 1], units[write, 2] = document, 0, stop - base
            write += 1
            continue
        place = base
        opened = False  # whether the paragraph written last goes on
        while place < stop:
            end = line_end(data, place, stop)
            if is_blank(data, place, end, table):
                if level == PARAGRAPH and write > 0 and units[write - 1, 0] == document:
                    units[write - 1, 2] = end - base
                opened = False
            elif opened:
                units[write - 1, 2] = end - base
            else:
                units[write, 0], units[write, 1], units[write, 2] = document, place - base, end - base
                write += 1
                opened = level == PARAGRAPH
            place = end
    return write


@kernel
def hash_units(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    table: NDArray[np.uint32],
    units: NDArray[np.int64],
    spaces: bool,
    hashes: NDArray[np.uint64],
    lengths: NDArray[np.int64],
) -> None:
    """Write a hash of each part, and its length.

    Args:
        data: (byte) the documents' bytes.
        offsets: (document + 1) where each begins.
        table: (code point) see `kernels.code_points`.
        units: (part, 3) document, first byte within it, byte behind the last.
        spaces: Whether each run of white space counts as one space, and none around the part.
        hashes: (part, 2) buffer to fill.
        lengths: (part) buffer to fill: bytes that were hashed that do not continue a character.
    """
    for unit in range(units.shape[0]):
        base = int(offsets[units[unit, 0]])
        place, stop = base + int(units[unit, 1]), base + int(units[unit, 2])
        first, second = SEED_1, SEED_2
        length = 0
        waiting = False  # whether white space has been read behind what was hashed
        while place < stop:
            begin = place
            point, place = decode(data, place, stop)
            if spaces and point < table.shape[0] and table[point] & SPACE:
                waiting = length > 0
                continue
            if waiting:
                first, second = (first ^ BLANK) * PRIME_1, (second ^ BLANK) * PRIME_2
                length += 1
                waiting = False
            for i in range(begin, place):
                byte = np.uint64(data[i])
                first, second = (first ^ byte) * PRIME_1, (second ^ byte) * PRIME_2
            length += 1
        hashes[unit, 0], hashes[unit, 1] = mix(first), mix(second)
        lengths[unit] = length
