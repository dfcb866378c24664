"""What FineWeb's rules count in each document."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.jit import kernel
from nbllm.data.kernels.repetition import first_places, new_buckets, repeated_length
from nbllm.data.kernels.utf8 import (
    QUOTE,
    SENTENCE_END,
    WORKSPACE,
    count_byte,
    count_words,
    last_flags,
    new_lines,
    new_words,
    read_lines,
    read_raw_lines,
)

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
    ends = SENTENCE_END if as_code else SENTENCE_END | QUOTE
    longest = 0
    for document in range(valid.shape[0]):
        longest = max(longest, offsets[document + 1] - offsets[document])
    room = min(most, longest // 2 + 1)
    buckets, first = new_buckets(room), np.empty(room, np.int32)
    words, lines = new_words(WORKSPACE), new_lines(room)
    for document in range(valid.shape[0]):
        if not valid[document]:
            continue
        place, stop = offsets[document], offsets[document + 1]
        row = counts[document]
        row[6] = count_byte(data, place, stop, 10)
        row[5] = count_words(data, place, stop, table, words)
        looked_at = -1
        while place < stop:
            if as_code:
                count, all_points, place = read_raw_lines(data, place, stop, table, lines)
                row[4] += all_points
            else:
                count, _, place = read_lines(data, place, stop, table, lines)
            row[0] += count
            for line in range(count):
                row[1] += last_flags(data, lines.starts[line], lines.ends[line], table) & ends != 0
                row[2] += lines.lengths[line] < short
                row[4] += 0 if as_code else lines.lengths[line]
            if looked_at < 0:
                looked_at = count
                if first_places(lines.hashes, count, buckets, first):
                    row[3] = repeated_length(first, lines.lengths, count)[0]
