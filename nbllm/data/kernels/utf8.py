"""Characters, words and lines of UTF-8 text: what the kernels of `data.quality` are built from.

Text is a span of bytes. The constants below are the bits of `nbllm.data.quality.characters.CharacterTable`. Every
function here walks forward and reads each byte a bounded number of times.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.jit import inlined, kernel

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

WORKSPACE = 1024  # words that are read at a time
REPLACEMENT = 0xFFFD
PRIME = np.uint64(0x100000001B3)
BASIS = np.uint64(0xCBF29CE484222325)
S29, S32 = np.uint64(29), np.uint64(32)
MIX = np.uint64(0xBF58476D1CE4E5B9)


@inlined
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


@inlined
def kinds_of(code: int, table: CharacterTable) -> int:
    """Return the flags of a character."""
    return int(table.flags[(int(table.pages[code >> 8]) << 8) | (code & 255)])


@inlined
def mixed(value: np.uint64) -> np.uint64:
    """Return `value` with every bit depending on every other."""
    value = (value ^ (value >> S32)) * MIX
    return value ^ (value >> S29)


@kernel
def behind_spaces(data: NDArray[np.uint8], place: int, stop: int, table: CharacterTable) -> int:
    """Return the place of the first character that is no space, or `stop`."""
    while place < stop:
        code, following = decode(data, place, stop)
        if not kinds_of(code, table) & SPACE:
            break
        place = following
    return place


class Words(NamedTuple):
    """What is known of each word, each (words,): a workspace that `read_words` fills.

    Attributes:
        hashes: uint64.
        lengths: int32, characters without extenders.
        points: int32, code points.
        kinds: int32, the flags that any of its characters has.
    """

    hashes: NDArray[np.uint64]
    lengths: NDArray[np.int32]
    points: NDArray[np.int32]
    kinds: NDArray[np.int32]


@kernel
def new_words(size: int) -> Words:
    """Return a workspace for `size` words."""
    return Words(
        np.empty(size, np.uint64),
        np.empty(size, np.int32),
        np.empty(size, np.int32),
        np.empty(size, np.int32),
    )


@kernel
def read_words(
    data: NDArray[np.uint8], place: int, stop: int, table: CharacterTable, words: Words
) -> tuple[int, int]:
    """Fill `words` with the words at and behind `place`, as many as there are or as it holds.

    A word is a run of characters without a space. Where letters of a script without spaces (Chinese, Japanese, Thai,
    ...) are in it, each of these, with the marks and the punctuation behind it, is a word of its own: the run is also
    cut before such a letter if a letter or number precedes it, and before a letter or number of another script that
    follows one.

    Returns:
        How many words were read, and the place behind the last.
    """
    flags = table.flags
    hashes, lengths, all_points, all_kinds = words.hashes, words.lengths, words.points, words.kinds
    count = 0
    while count < hashes.shape[0]:
        while place < stop and data[place] < 128 and flags[data[place]] & SPACE:
            place += 1
        if place < stop and data[place] >= 128:
            place = behind_spaces(data, place, stop, table)
        if place >= stop:
            break
        start, value = place, BASIS
        kinds, ends = 0, SPACE
        continuations, extenders = 0, 0
        while place < stop:
            if data[place] < 128:
                flag = int(flags[data[place]])
                if flag & ends:
                    break
                value = (value ^ np.uint64(data[place])) * PRIME
                place += 1
            else:
                code, following = decode(data, place, stop)
                flag = kinds_of(code, table)
                if flag & EXTENDER:
                    extenders += 1
                elif flag & UNSPACED:
                    if kinds & (LETTER | NUMBER):
                        break
                    ends = SPACE | LETTER | NUMBER
                elif flag & ends:
                    break
                value = (value ^ np.uint64(code)) * PRIME
                continuations += following - place - 1
                place = following
            kinds |= flag
        points = place - start - continuations
        hashes[count], all_kinds[count] = mixed(value), kinds
        lengths[count], all_points[count] = points - extenders, points
        count += 1
    return count, place


@kernel
def count_words(data: NDArray[np.uint8], start: int, stop: int, table: CharacterTable, words: Words) -> int:
    """Return the number of words in a span."""
    total, place = 0, start
    while place < stop:
        count, place = read_words(data, place, stop, table, words)
        total += count
    return total


@kernel
def count_byte(data: NDArray[np.uint8], start: int, stop: int, byte: int) -> int:
    """Return how often a byte occurs in a span."""
    found = 0
    for place in range(start, stop):
        found += data[place] == byte
    return found


class Lines(NamedTuple):
    """What is known of each line that is not blank, each (lines,): a workspace that `read_lines` fills.

    Attributes:
        begins: int64, the first byte.
        starts: int64, the first byte that is no space.
        ends: int64, the byte behind the last that is no space.
        nexts: int64, the byte behind the line's end.
        hashes: uint64, of the text between `starts` and `ends`.
        lengths: int32, characters of it, without extenders.
        gaps: bool, whether a blank line stands before it.
    """

    begins: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    nexts: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    lengths: NDArray[np.int32]
    gaps: NDArray[np.bool_]


@kernel
def new_lines(size: int) -> Lines:
    """Return a workspace for `size` lines."""
    return Lines(
        np.empty(size, np.int64),
        np.empty(size, np.int64),
        np.empty(size, np.int64),
        np.empty(size, np.int64),
        np.empty(size, np.uint64),
        np.empty(size, np.int32),
        np.empty(size, np.bool_),
    )


@kernel
def read_lines(
    data: NDArray[np.uint8], place: int, stop: int, table: CharacterTable, lines: Lines
) -> tuple[int, int, int]:
    """Fill `lines` with the lines from `place` on that are not blank, as many as there are or as it holds.

    Lines end where `str.splitlines` cuts.

    Returns:
        How many lines were read, how many of all lines, and the place behind the last.
    """
    flags = table.flags
    begins, starts, ends, nexts = lines.begins, lines.starts, lines.ends, lines.nexts
    hashes, lengths, gaps = lines.hashes, lines.lengths, lines.gaps
    count, all_lines, gap = 0, 0, False
    while place < stop and count < begins.shape[0]:
        begin, start, end = place, -1, -1
        value, value_at_end = BASIS, BASIS
        uncounted, uncounted_at_end = 0, 0  # bytes that begin no character, and extenders
        while place < stop:
            before = place
            code, flag = int(data[place]), int(flags[data[place] & 127])
            place += 1
            if code >= 128:
                code, place = decode(data, before, stop)
                flag = kinds_of(code, table)
                uncounted += place - before - 1 + (1 if flag & EXTENDER else 0)
            if not flag & SPACE:
                if start < 0:
                    start, value, uncounted = (
                        before,
                        BASIS,
                        place - before - 1 + (1 if flag & EXTENDER else 0),
                    )
                value = (value ^ np.uint64(code)) * PRIME
                end, value_at_end, uncounted_at_end = place, value, uncounted
                continue
            value = (value ^ np.uint64(code)) * PRIME
            if flag & LINE_END:
                place += code == 13 and place < stop and data[place] == 10
                break
        all_lines += 1
        if start < 0:
            gap = True
            continue
        begins[count], starts[count], ends[count], nexts[count] = begin, start, end, place
        hashes[count], lengths[count] = mixed(value_at_end), end - start - uncounted_at_end
        gaps[count] = gap
        gap = False
        count += 1
    return count, all_lines, place


@kernel
def read_raw_lines(
    data: NDArray[np.uint8], place: int, stop: int, table: CharacterTable, lines: Lines
) -> tuple[int, int, int]:
    """Fill `lines` with lines that end at line feeds alone and keep the space at their ends; lengths in code points.

    Blank lines are left out; `gaps` is not filled.

    Returns:
        How many lines were read, how many code points all lines have, and the place behind the last.
    """
    count, all_points = 0, 0
    while place < stop and count < lines.begins.shape[0]:
        begin = place
        value, points, blank = BASIS, 0, True
        while place < stop and data[place] != 10:
            code, place = decode(data, place, stop)
            value = (value ^ np.uint64(code)) * PRIME
            points += 1
            if blank and not kinds_of(code, table) & SPACE:
                blank = False
        end = place
        place = min(place + 1, stop)
        all_points += points
        if not blank:
            lines.begins[count], lines.starts[count], lines.ends[count], lines.nexts[count] = (
                begin,
                begin,
                end,
                place,
            )
            lines.hashes[count], lines.lengths[count] = mixed(value), points
            count += 1
    return count, all_points, place


@kernel
def last_flags(data: NDArray[np.uint8], start: int, stop: int, table: CharacterTable) -> int:
    """Return the flags of the last character of a span that is not empty."""
    place = stop - 1
    while place > start and place > stop - 4 and data[place] & 0xC0 == 0x80:
        place -= 1
    code, following = decode(data, place, stop)
    return kinds_of(code if following == stop else REPLACEMENT, table)
