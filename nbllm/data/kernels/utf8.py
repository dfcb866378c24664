"""Characters, words and lines of UTF-8 text: what the kernels of `data.quality` are built from.

Text is a span of bytes. The constants below are the bits of `nbllm.data.quality.characters.CharacterTable`. Every
function here walks forward and reads each byte a bounded number of times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.jit import kernel

if TYPE_CHECKING:
    from nbllm.data.quality.characters import CharacterTable

SPACE = 1  # what str.isspace says
LETTER = 2
NUMBER = 4
EXTENDER = 8  # marks, and the vowels and finals of decomposed Hangul: not counted as characters
UNSPACED = 16  # letters of scripts that do not put spaces between words
UPPER = 32
SENTENCE_END = 64
QUOTE = 128
CLOSING = 256  # quotation marks and closing brackets, which may follow the end of a sentence
PLAIN = 512  # neither punctuation, nor a symbol, nor a control character
LINE_END = 1024  # where str.splitlines cuts
DIGIT = 2048  # decimal digits

REPLACEMENT = 0xFFFD
PRIME = np.uint64(0x100000001B3)
BASIS = np.uint64(0xCBF29CE484222325)
S29, S32 = np.uint64(29), np.uint64(32)
MIX = np.uint64(0xBF58476D1CE4E5B9)


@kernel
def decode(data: NDArray[np.uint8], place: int, stop: int) -> tuple[int, int]:
    """Return the character at `place`, and the place behind it.

    Of bytes that are not UTF-8, each longest beginning of a character, or else each byte, is U+FFFD, as
    `bytes.decode(errors="replace")` has it. Source: The Unicode Standard, section 3.9, table 3-7.
    """
    first = int(data[place])
    if first < 0x80:
        return first, place + 1
    if first < 0xC2 or first > 0xF4:
        return REPLACEMENT, place + 1
    low, high = 0x80, 0xBF
    if first < 0xE0:
        rest, code = 1, first & 0x1F
    elif first < 0xF0:
        rest, code = 2, first & 0x0F
        if first == 0xE0:
            low = 0xA0
        elif first == 0xED:
            high = 0x9F
    else:
        rest, code = 3, first & 0x07
        if first == 0xF0:
            low = 0x90
        elif first == 0xF4:
            high = 0x8F
    place += 1
    for _ in range(rest):
        if place >= stop:
            return REPLACEMENT, place
        byte = int(data[place])
        if byte < low or byte > high:
            return REPLACEMENT, place
        code = (code << 6) | (byte & 0x3F)
        low, high = 0x80, 0xBF
        place += 1
    return code, place


@kernel
def kinds_of(code: int, table: CharacterTable) -> int:
    """Return the flags of a character."""
    return int(table.flags[(int(table.pages[code >> 8]) << 8) | (code & 255)])


@kernel
def mixed(value: np.uint64) -> np.uint64:
    """Return `value` with every bit depending on every other."""
    value = (value ^ (value >> S32)) * MIX
    return value ^ (value >> S29)


@kernel
def next_word(
    data: NDArray[np.uint8], place: int, stop: int, table: CharacterTable
) -> tuple[int, int, np.uint64, int, int, int]:
    """Return the next word at or behind `place`.

    A word is a run of characters without a space. Where letters of a script without spaces (Chinese, Japanese, Thai,
    ...) are in it, each of these, with the marks and the punctuation behind it, is a word of its own: the run is also
    cut before such a letter if a letter or number precedes it, and before a letter or number of another script that
    follows one.

    Returns:
        First byte and byte behind the last (equal where there is no further word); hash; number of characters without
        extenders; number of code points; the flags that any of its characters has.
    """
    code, following, flag = 0, place, 0
    while place < stop:
        code, following = decode(data, place, stop)
        flag = kinds_of(code, table)
        if not flag & SPACE:
            break
        place = following
    start = place
    value = BASIS
    length, points, kinds = 0, 0, 0
    while place < stop:
        if flag & (LETTER | NUMBER) and not flag & EXTENDER:
            if flag & UNSPACED:
                if kinds & (LETTER | NUMBER):
                    break
            elif kinds & UNSPACED:
                break
        elif flag & SPACE:
            break
        kinds |= flag
        value = (value ^ np.uint64(code)) * PRIME
        points += 1
        if not flag & EXTENDER:
            length += 1
        place = following
        if place < stop:
            code, following = decode(data, place, stop)
            flag = kinds_of(code, table)
    return start, place, mixed(value), length, points, kinds


@kernel
def next_line(
    data: NDArray[np.uint8], place: int, stop: int, table: CharacterTable
) -> tuple[int, int, int, np.uint64, int]:
    """Return the line that begins at `place`, without the space at its ends.

    Lines end where `str.splitlines` cuts.

    Returns:
        First byte and byte behind the last of the text in it (equal where it is blank); the place of the next line;
        hash of the text; its number of characters without extenders.
    """
    start, end = -1, -1
    value, value_at_end = BASIS, BASIS
    length, length_at_end = 0, 0
    while place < stop:
        before = place
        code, place = decode(data, before, stop)
        flag = kinds_of(code, table)
        if flag & LINE_END:
            if code == 13 and place < stop and data[place] == 10:
                place += 1
            break
        if start < 0:
            if flag & SPACE:
                continue
            start = before
        value = (value ^ np.uint64(code)) * PRIME
        if not flag & EXTENDER:
            length += 1
        if not flag & SPACE:
            end, value_at_end, length_at_end = place, value, length
    if start < 0:
        start, end = place, place
    return start, end, place, mixed(value_at_end), length_at_end


@kernel
def last_flags(data: NDArray[np.uint8], start: int, stop: int, table: CharacterTable) -> tuple[int, int]:
    """Return the last character of a span that is not empty, and its flags."""
    place = stop - 1
    while place > start and place > stop - 4 and data[place] & 0xC0 == 0x80:
        place -= 1
    code, following = decode(data, place, stop)
    if following != stop:
        code = REPLACEMENT
    return code, kinds_of(code, table)


@kernel
def raw_line(
    data: NDArray[np.uint8], place: int, stop: int, table: CharacterTable
) -> tuple[int, int, np.uint64, int, bool]:
    """Return the line that begins at `place`, ended by a line feed, with the space at its ends.

    Returns:
        The byte behind its last; the place of the next line; hash; number of code points; whether it is blank.
    """
    value, points, blank = BASIS, 0, True
    while place < stop:
        if data[place] == 10:
            return place, place + 1, mixed(value), points, blank
        code, place = decode(data, place, stop)
        value = (value ^ np.uint64(code)) * PRIME
        points += 1
        if blank and not kinds_of(code, table) & SPACE:
            blank = False
    return place, place, mixed(value), points, blank
