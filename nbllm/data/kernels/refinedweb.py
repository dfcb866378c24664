"""RefinedWeb's line-wise corrections."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.c4 import record
from nbllm.data.kernels.jit import kernel
from nbllm.data.kernels.phrases import any_stands_at, stands_at
from nbllm.data.kernels.utf8 import (
    EXTENDER,
    LETTER,
    NUMBER,
    SPACE,
    UPPER,
    WORKSPACE,
    count_words,
    decode,
    kinds_of,
    new_lines,
    new_words,
    read_lines,
)

if TYPE_CHECKING:
    from nbllm.data.arrow_text import Texts
    from nbllm.data.quality.characters import CharacterTable

# The rules by which a line or a span is removed.
UPPERCASE, NUMERICAL, COUNTER, ONE_WORD, START, END, ANYWHERE = range(7)
TOTAL, REMOVED = range(2)  # the columns of the counts, in words


class Phrases(NamedTuple):
    """What is looked for, in lower case: what a counter counts, and spans by where they stand in a line."""

    counted: Texts
    start: Texts
    end: Texts
    anywhere: Texts


class Limits(NamedTuple):
    """When a line is removed or edited.

    Attributes:
        max_uppercase: Share of its characters that are upper case, at most.
        max_words: Words of a line in which spans are removed, at most.
    """

    max_uppercase: float
    max_words: int


@kernel
def skip(data: NDArray[np.uint8], place: int, stop: int, table: CharacterTable, spaces: bool) -> int:
    """Return the place behind a run of spaces, or of characters that are neither letters nor numbers."""
    while place < stop:
        code, following = decode(data, place, stop)
        kinds = kinds_of(code, table)
        if (not kinds & SPACE) if spaces else (kinds & (LETTER | NUMBER)):
            break
        place = following
    return place


@kernel
def is_counter(data: NDArray[np.uint8], start: int, stop: int, table: CharacterTable, counted: Texts) -> bool:
    """Return whether a line is a number and a word for what is counted, as in "1.2K likes"."""
    place = first = skip(data, start, stop, table, False)
    while place < stop and (48 <= data[place] <= 57 or (place > first and data[place] in (44, 46))):
        place += 1
    if place == first or place >= stop:
        return False
    if data[place] | 32 in (98, 107, 109):  # b, k, m
        place += 1
    noun = skip(data, place, stop, table, True)
    if noun == place:
        return False
    for index in range(counted.valid.shape[0]):
        behind = stands_at(data, noun, stop, counted, index)
        if behind >= 0 and skip(data, behind, stop, table, False) == stop:
            return True
    return False


@kernel
def judge_line(
    data: NDArray[np.uint8],
    start: int,
    stop: int,
    table: CharacterTable,
    counted: Texts,
    limits: Limits,
    words: int,
) -> tuple[int, float]:
    """Return the rule by which a line that is not blank is removed, or -1, and what was measured."""
    characters, upper, numbers = 0, 0, 0
    place = start
    while place < stop:
        code, place = decode(data, place, stop)
        kinds = kinds_of(code, table)
        if not kinds & (SPACE | EXTENDER):
            characters += 1
            upper += kinds & UPPER != 0
            numbers += kinds & NUMBER != 0
    if upper > limits.max_uppercase * characters:
        return UPPERCASE, upper / characters
    if characters and numbers == characters:
        return NUMERICAL, np.nan
    if is_counter(data, start, stop, table, counted):
        return COUNTER, np.nan
    if words == 1:
        return ONE_WORD, 1.0
    return -1, np.nan


@kernel
def find_spans(
    data: NDArray[np.uint8], start: int, stop: int, phrases: Phrases, spans: NDArray[np.int64]
) -> int:
    """Write (first byte, byte behind the last, rule) of the spans to remove from a line; return how many."""
    number = 0
    behind = any_stands_at(data, start, stop, phrases.start)
    if behind >= 0:
        spans[0, 0], spans[0, 1], spans[0, 2] = start, behind, START
        number, start = 1, behind
    end = stop
    for index in range(phrases.end.valid.shape[0]):
        size = phrases.end.offsets[index + 1] - phrases.end.offsets[index]
        if stop - size >= start and any_stands_at(data, stop - size, stop, phrases.end) == stop:
            end = min(end, stop - size)
    while start < end and number < spans.shape[0] - 1:
        behind = any_stands_at(data, start, end, phrases.anywhere)
        if behind >= 0:
            spans[number, 0], spans[number, 1], spans[number, 2] = start, behind, ANYWHERE
            number += 1
            start = behind
        else:
            start += 1
    if end < stop:
        spans[number, 0], spans[number, 1], spans[number, 2] = end, stop, END
        number += 1
    return number


@kernel
def correct_lines(
    texts: Texts,
    table: CharacterTable,
    phrases: Phrases,
    limits: Limits,
    counts: NDArray[np.int64],
    edits: NDArray[np.int64],
    values: NDArray[np.float64],
) -> int:
    """Write what is removed of each document.

    Args:
        texts: The documents.
        table: The kinds of all characters.
        phrases: What is looked for.
        limits: When a line is removed or edited.
        counts: (documents, 2), zeros: all words, and those removed.
        edits: (edits, 4), filled as far as it goes: document, first byte and byte behind the last within the document,
            rule.
        values: (edits,), what was measured.

    Returns:
        How many edits there are.
    """
    data = texts.data
    spans = np.empty((limits.max_words + 2, 3), np.int64)
    workspace, lines = new_words(WORKSPACE), new_lines(WORKSPACE)
    number = 0
    for document in range(texts.valid.shape[0]):
        if not texts.valid[document]:
            continue
        place = origin = texts.offsets[document]
        stop = texts.offsets[document + 1]
        while place < stop:
            count, _, place = read_lines(data, place, stop, table, lines)
            for line in range(count):
                first, end = lines.starts[line], lines.ends[line]
                words = count_words(data, first, end, table, workspace)
                counts[document, TOTAL] += words
                rule, value = judge_line(data, first, end, table, phrases.counted, limits, words)
                found = 0
                if rule >= 0:
                    spans[0, 0], spans[0, 1], spans[0, 2] = lines.begins[line], lines.nexts[line], rule
                    found = 1
                elif words <= limits.max_words:
                    found = find_spans(data, first, end, phrases, spans)
                for index in range(found):
                    begin, behind, broken = spans[index, 0], spans[index, 1], spans[index, 2]
                    counts[document, REMOVED] += count_words(data, begin, behind, table, workspace)
                    number = record(
                        edits, values, number, document, begin - origin, behind - origin, broken, value
                    )
    return number
