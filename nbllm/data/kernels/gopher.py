"""What Gopher's rules count in each document."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.jit import kernel
from nbllm.data.kernels.utf8 import (
    LETTER,
    PLAIN,
    UNSPACED,
    WORKSPACE,
    Words,
    new_lines,
    new_words,
    read_lines,
    read_words,
)

if TYPE_CHECKING:
    from nbllm.data.arrow_text import Texts
    from nbllm.data.quality.characters import CharacterTable

# The columns of the counts.
COUNTS = (
    "words",
    "plain_words",  # with a character that is neither punctuation nor symbol
    "plain_word_points",  # code points of those
    "spaced_words",  # words of scripts with spaces
    "spaced_word_length",  # characters of those, without extenders
    "letter_words",  # with a letter
    "stop_words",  # how many of the list occur
    "hashes",
    "ellipses",
    "lines",
    "filled_lines",  # not blank
    "bullet_lines",
    "ellipsis_lines",
)


@kernel
def ends_in_ellipsis(data: NDArray[np.uint8], start: int, stop: int) -> bool:
    """Return whether the last character is "…" or the last three are full stops."""
    if stop - start < 3:
        return False
    one, two, three = data[stop - 3], data[stop - 2], data[stop - 1]
    return bool((one == 46 and two == 46 and three == 46) or (one == 0xE2 and two == 0x80 and three == 0xA6))


@kernel
def starts_with_bullet(data: NDArray[np.uint8], start: int, stop: int) -> bool:
    """Return whether the first character is "•" or "-"."""
    if start < stop and data[start] == 45:
        return True
    return bool(
        stop - start >= 3 and data[start] == 0xE2 and data[start + 1] == 0x80 and data[start + 2] == 0xA2
    )


@kernel
def count_symbols(data: NDArray[np.uint8], start: int, stop: int) -> tuple[int, int]:
    """Return how many `#` there are, and how many ellipses: "..." that do not overlap, and "…"."""
    hashes, ellipses, stops = 0, 0, 0
    for place in range(start, stop):
        byte = data[place]
        if byte == 46:
            stops += 1
            if stops == 3:
                ellipses += 1
                stops = 0
            continue
        stops = 0
        if byte == 35:
            hashes += 1
        elif byte == 0xA6 and place >= start + 2 and data[place - 1] == 0x80 and data[place - 2] == 0xE2:
            ellipses += 1
    return hashes, ellipses


@kernel
def count_words(
    words: Words, count: int, stop_hashes: NDArray[np.uint64], seen: np.uint64, row: NDArray[np.int64]
) -> np.uint64:
    """Add to the first six counts of a document; return `seen` with the bits of the stop words that occur."""
    plain, points, spaced, spaced_length, letters = 0, 0, 0, 0, 0
    found = seen
    for word in range(count):
        kinds = words.kinds[word]
        if kinds & PLAIN:
            plain += 1
            points += words.points[word]
        if not kinds & UNSPACED:
            spaced += 1
            spaced_length += words.lengths[word]
        letters += kinds & LETTER != 0
        value = words.hashes[word]
        for index in range(stop_hashes.shape[0]):
            if stop_hashes[index] == value:
                found |= np.uint64(1) << np.uint64(index)
    row[0] += count
    row[1] += plain
    row[2] += points
    row[3] += spaced
    row[4] += spaced_length
    row[5] += letters
    return found


@kernel
def count_documents(
    texts: Texts, table: CharacterTable, stop_hashes: NDArray[np.uint64], counts: NDArray[np.int64]
) -> None:
    """Fill `counts` (documents, len(COUNTS)), which holds zeros; a null has no words and no lines.

    Args:
        texts: The documents.
        table: The kinds of all characters.
        stop_hashes: The hashes of at most 64 words, as `read_words` has them.
        counts: The result.
    """
    data, offsets, valid = texts.data, texts.offsets, texts.valid
    words, lines = new_words(WORKSPACE), new_lines(WORKSPACE)
    for document in range(valid.shape[0]):
        if not valid[document]:
            continue
        start, stop = offsets[document], offsets[document + 1]
        row = counts[document]
        place, seen = start, np.uint64(0)
        while place < stop:
            count, place = read_words(data, place, stop, table, words)
            seen = count_words(words, count, stop_hashes, seen, row)
        while seen:
            row[6] += 1
            seen &= seen - np.uint64(1)
        row[7], row[8] = count_symbols(data, start, stop)
        place = start
        while place < stop:
            count, all_lines, place = read_lines(data, place, stop, table, lines)
            row[9] += all_lines
            row[10] += count
            for line in range(count):
                row[11] += starts_with_bullet(data, lines.starts[line], lines.ends[line])
                row[12] += ends_in_ellipsis(data, lines.starts[line], lines.ends[line])
