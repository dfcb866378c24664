"""What FineWeb's rules count in each document."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.jit import kernel
from nbllm.data.kernels.repetition import first_places, repeated_length
from nbllm.data.kernels.utf8 import QUOTE, SENTENCE_END, last_flags, next_line, next_word, raw_line

if TYPE_CHECKING:
    from nbllm.data.arrow_text import Texts
    from nbllm.data.quality.characters import CharacterTable

# The columns of the counts.
COUNTS = (
    "lines",  # not blank
    "ended_lines",  # that end in punctuation
    "short_lines",
    "duplicate_characters",  # in lines that repeat an earlier one
    "characters",  # in lines
    "words",
    "line_feeds",
)


@kernel
def count_lines(
    texts: Texts,
    table: CharacterTable,
    short: int,
    as_code: bool,
    most: int,
    counts: NDArray[np.int64],
) -> None:
    """Fill `counts` (documents, len(COUNTS)), which holds zeros; a null has no lines.

    Args:
        texts: The documents.
        table: The kinds of all characters.
        short: A line of fewer characters is short.
        as_code: Count as datatrove's FineWebQualityFilter does: lines are cut at line feeds alone and keep the space at
            their ends, a quotation mark does not end one, and all code points are counted. Otherwise lines are
            those of `str.splitlines` without the space at their ends, and characters are counted without extenders.
        most: How many lines of a document are looked at for duplicates.
        counts: The result.
    """
    data, offsets, valid = texts.data, texts.offsets, texts.valid
    longest = 0
    for document in range(valid.shape[0]):
        longest = max(longest, offsets[document + 1] - offsets[document])
    room = min(most, longest // 2 + 1)
    slots = 16
    while slots < 2 * room:
        slots *= 2
    buckets, first_of = np.empty(slots, np.int32), np.empty(room, np.int32)
    hashes, lengths = np.empty(room, np.uint64), np.empty(room, np.int32)
    ends = SENTENCE_END if as_code else SENTENCE_END | QUOTE
    for document in range(valid.shape[0]):
        if not valid[document]:
            continue
        stop = offsets[document + 1]
        place = offsets[document]
        row = counts[document]
        looked_at = 0
        while place < stop:
            first = place
            if as_code:
                end, place, value, length, blank = raw_line(data, place, stop, table)
                row[4] += length
            else:
                first, end, place, value, length = next_line(data, place, stop, table)
                blank = first == end
                row[4] += 0 if blank else length
            if blank:
                continue
            row[0] += 1
            if last_flags(data, first, end, table)[1] & ends:
                row[1] += 1
            if length < short:
                row[2] += 1
            if looked_at < room:
                hashes[looked_at], lengths[looked_at] = value, length
                looked_at += 1
        if first_places(hashes, looked_at, buckets, first_of):
            row[3] = repeated_length(first_of, lengths, looked_at)[0]
        _count_words(data, offsets[document], stop, table, row)


@kernel
def _count_words(
    data: NDArray[np.uint8],
    start: int,
    stop: int,
    table: CharacterTable,
    row: NDArray[np.int64],
) -> None:
    for place in range(start, stop):
        row[6] += data[place] == 10
    place = start
    while True:
        first, place, _, _, _, _ = next_word(data, place, stop, table)
        if first == place:
            return
        row[5] += 1
