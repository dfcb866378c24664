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
    WORKSPACE,
    Words,
    count_byte,
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

# The rules by which a line or span is removed.
BRACKET = 123  # {
OPENING = 91  # [
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
    if data[place] != OPENING:
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
        if data[place] == OPENING:
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
    words: Words,
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
    number = runs if demands.as_code else count_words(data, start, stop, table, words)
    if number < demands.min_words:
        return WORDS, float(number)
    if demands.as_code:
        counts[LOREM_IPSUM] += contains(data, start, stop, phrases.lorem_ipsum)
    if contains(data, start, stop, phrases.javascript):
        return JAVASCRIPT, np.nan
    if demands.as_code:
        counts[CURLY_BRACKETS] += count_byte(data, start, stop, BRACKET)
    if contains(data, start, stop, phrases.policy):
        return POLICY, np.nan
    counts[SENTENCES] += sentences
    return -1, np.nan


@kernel
def record(
    edits: NDArray[np.int64],
    values: NDArray[np.float64],
    number: int,
    document: int,
    start: int,
    stop: int,
    rule: int,
    value: float,
) -> int:
    """Write an edit at place `number`, if there is one; return the place of the next."""
    if number < edits.shape[0]:
        edits[number, 0], edits[number, 1], edits[number, 2], edits[number, 3] = document, start, stop, rule
        values[number] = value
    return number + 1


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
    words, lines = new_words(WORKSPACE), new_lines(WORKSPACE)
    number = 0
    for document in range(texts.valid.shape[0]):
        if not texts.valid[document]:
            continue
        origin, stop = offsets[document], offsets[document + 1]
        if not demands.as_code:
            counts[document, LOREM_IPSUM] = contains(data, origin, stop, phrases.lorem_ipsum)
            counts[document, CURLY_BRACKETS] = count_byte(data, origin, stop, BRACKET)
        place, behind = origin, origin
        while place < stop:
            count, _, place = read_lines(data, place, stop, table, lines)
            for line in range(count):
                begin, first, end = lines.begins[line], lines.starts[line], lines.ends[line]
                if begin > behind:
                    number = record(
                        edits, values, number, document, behind - origin, begin - origin, BLANK, np.nan
                    )
                behind = lines.nexts[line]
                rule, value = judge_line(data, first, end, table, phrases, demands, words, counts[document])
                if rule >= 0:
                    number = record(
                        edits, values, number, document, begin - origin, behind - origin, rule, value
                    )
                    continue
                while first < end:
                    after = -1
                    if data[first] == OPENING:
                        after = behind_citation(data, first, end, table, phrases.citations)
                    if after >= 0:
                        number = record(
                            edits, values, number, document, first - origin, after - origin, CITATION, np.nan
                        )
                    first = max(after, first + 1)
        if behind < stop:
            number = record(edits, values, number, document, behind - origin, stop - origin, BLANK, np.nan)
    return number
