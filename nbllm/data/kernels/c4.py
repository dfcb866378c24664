"""C4's rules for lines and pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.jit import kernel
from nbllm.data.kernels.phrases import contains
from nbllm.data.kernels.utf8 import (
    CLOSING,
    DIGIT,
    QUOTE,
    SENTENCE_END,
    SPACE,
    decode,
    kinds_of,
    next_line,
    next_word,
)

if TYPE_CHECKING:
    from nbllm.data.arrow_text import Texts
    from nbllm.data.quality.characters import CharacterTable

# The rules by which a line or span is removed.
BLANK, END, WORDS, LONG_WORD, JAVASCRIPT, POLICY, CITATION = range(7)
SENTENCES, LOREM_IPSUM, CURLY_BRACKETS = range(3)  # the columns of the counts


class Phrases(NamedTuple):
    """What is looked for, in lower case; `citations` begin behind a bracket."""

    javascript: Texts
    policy: Texts
    lorem_ipsum: Texts
    citations: Texts


class Demands(NamedTuple):
    """What is asked of a line.

    Attributes:
        end: Whether it must end in punctuation.
        min_words: Words, at least.
        max_word_length: Code points between spaces, at most.
        as_code: As datatrove's C4QualityFilter has it.
    """

    end: bool
    min_words: int
    max_word_length: int
    as_code: bool


@kernel
def behind_citation(
    data: NDArray[np.uint8], place: int, stop: int, table: CharacterTable, citations: Texts
) -> int:
    """Return the place behind a citation marker, such as "[12]", "[]" or "[edit]", at `place`, or -1."""
    if data[place] != 91:
        return -1
    for index in range(citations.valid.shape[0]):
        first, behind = citations.offsets[index], citations.offsets[index + 1]
        if stop - place - 1 >= behind - first:
            same = True
            for step in range(behind - first):
                same = same and data[place + 1 + step] == citations.data[first + step]
            if same:
                return int(place + 1 + behind - first)
    place += 1
    while place < stop:
        if data[place] == 93:
            return place + 1
        code, place = decode(data, place, stop)
        if not kinds_of(code, table) & DIGIT:
            return -1
    return -1


@kernel
def read_line(
    data: NDArray[np.uint8], start: int, stop: int, table: CharacterTable, citations: Texts
) -> tuple[int, int, int, int, int]:
    """Return how a line that is not blank ends, and how many sentences it has, citation markers left out.

    A sentence ends with a mark that ends sentences (and closing quotation marks and brackets behind it) before a space
    or the end of the line; a mark that is not ASCII also ends one where no space follows, since scripts that write
    such marks often write none.

    Returns:
        The last character, its flags, and how many full stops end the line; 1 if space follows the last character that
        is not a space (before markers), else 0; the number of sentences.
    """
    last, last_kinds, full_stops, space_behind, sentences = 0, 0, 0, 0, 0
    inside, ended, wide = False, False, False
    place = start
    while place < stop:
        behind = behind_citation(data, place, stop, table, citations)
        if behind >= 0:
            place = behind
            continue
        code, place = decode(data, place, stop)
        kinds = kinds_of(code, table)
        if kinds & SPACE:
            space_behind = 1
        else:
            full_stops = (full_stops if not space_behind else 0) + 1 if code == 46 else 0
            last, last_kinds, space_behind = code, kinds, 0
        if kinds & SENTENCE_END:
            inside, ended, wide = True, True, wide or code >= 128
        elif ended and kinds & CLOSING:
            continue
        elif kinds & SPACE:
            sentences += ended
            inside, ended, wide = inside and not ended, False, False
        else:
            sentences += ended and wide
            inside, ended, wide = True, False, False
    return last, last_kinds, full_stops * (1 - space_behind), space_behind, sentences + inside


@kernel
def read_words(data: NDArray[np.uint8], start: int, stop: int, table: CharacterTable) -> tuple[int, int]:
    """Return how many runs without a space there are, and how many code points the longest has."""
    runs, longest, points = 0, 0, 0
    place = start
    while place < stop:
        code, place = decode(data, place, stop)
        if kinds_of(code, table) & SPACE:
            points = 0
        else:
            runs += points == 0
            points += 1
            longest = max(longest, points)
    return runs, longest


@kernel
def count_words(data: NDArray[np.uint8], start: int, stop: int, table: CharacterTable) -> int:
    """Return the number of words."""
    count, place = 0, start
    while True:
        first, place, _, _, _, _ = next_word(data, place, stop, table)
        if first == place:
            return count
        count += 1


@kernel
def ends_well(last: int, kinds: int, full_stops: int, space_behind: int, as_code: bool) -> bool:
    """Return whether a line ends in punctuation; an ellipsis, and all but five marks of ASCII, the code refuses."""
    if not as_code:
        return bool(kinds & (SENTENCE_END | QUOTE))
    return bool(kinds & (SENTENCE_END | QUOTE) and last < 128 and not space_behind and full_stops < 3)


@kernel
def judge_line(
    data: NDArray[np.uint8],
    start: int,
    stop: int,
    table: CharacterTable,
    phrases: Phrases,
    demands: Demands,
    counts: NDArray[np.int64],
) -> tuple[int, float]:
    """Return the rule that a line breaks, or -1, and what was measured; add to the document's counts.

    In the code's order, in which a line that is removed does not drop its page by a bracket or "lorem ipsum".
    """
    runs, longest = read_words(data, start, stop, table)
    if demands.as_code and longest > demands.max_word_length:
        return LONG_WORD, float(longest)
    last, kinds, full_stops, space_behind, sentences = read_line(data, start, stop, table, phrases.citations)
    if demands.end and not ends_well(last, kinds, full_stops, space_behind, demands.as_code):
        return END, np.nan
    words = runs if demands.as_code else count_words(data, start, stop, table)
    if words < demands.min_words:
        return WORDS, float(words)
    if demands.as_code:
        counts[LOREM_IPSUM] += contains(data, start, stop, phrases.lorem_ipsum)
    if contains(data, start, stop, phrases.javascript):
        return JAVASCRIPT, np.nan
    if demands.as_code:
        counts[CURLY_BRACKETS] += count_brackets(data, start, stop)
    if contains(data, start, stop, phrases.policy):
        return POLICY, np.nan
    counts[SENTENCES] += sentences
    return -1, np.nan


@kernel
def count_brackets(data: NDArray[np.uint8], start: int, stop: int) -> int:
    """Return how many "{" there are."""
    found = 0
    for place in range(start, stop):
        found += data[place] == 123
    return found


@kernel
def filter_lines(
    texts: Texts,
    table: CharacterTable,
    phrases: Phrases,
    demands: Demands,
    counts: NDArray[np.int64],
    edits: NDArray[np.int64],
    values: NDArray[np.float64],
) -> int:
    """Write what is removed of each document.

    Args:
        texts: The documents.
        table: The kinds of all characters.
        phrases: What is looked for.
        demands: What is asked of a line.
        counts: (documents, 3), zeros: sentences in the lines kept, "lorem ipsum" and "{".
        edits: (edits, 4), filled as far as it goes: document, first byte and byte behind the last within the document,
            rule.
        values: (edits,), what was measured.

    Returns:
        How many edits there are.
    """
    data, offsets = texts.data, texts.offsets
    number = 0
    for document in range(texts.valid.shape[0]):
        if not texts.valid[document]:
            continue
        origin, stop = offsets[document], offsets[document + 1]
        if not demands.as_code:
            counts[document, LOREM_IPSUM] = contains(data, origin, stop, phrases.lorem_ipsum)
            counts[document, CURLY_BRACKETS] = count_brackets(data, origin, stop)
        place = origin
        while place < stop:
            begin = place
            first, end, place, _, _ = next_line(data, place, stop, table)
            rule, value = BLANK, np.nan
            if first < end:
                rule, value = judge_line(data, first, end, table, phrases, demands, counts[document])
            if rule >= 0:
                if number < edits.shape[0]:
                    row = edits[number]
                    row[0], row[1], row[2], row[3] = document, begin - origin, place - origin, rule
                    values[number] = value
                number += 1
                continue
            while first < end:
                behind = behind_citation(data, first, end, table, phrases.citations)
                if behind >= 0:
                    if number < edits.shape[0]:
                        row = edits[number]
                        row[0], row[1], row[2], row[3] = document, first - origin, behind - origin, CITATION
                        values[number] = np.nan
                    number += 1
                    first = behind
                else:
                    first += 1
    return number
