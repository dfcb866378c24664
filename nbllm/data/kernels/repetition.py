"""How much of each document repeats itself: Gopher's table A1, as the paper says it and as its published code has it.

Lines, paragraphs and n-grams of words are compared by 64-bit hashes. Of a document, the first `most` words and lines
are looked at: the workspace stays small whatever the document.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.jit import kernel
from nbllm.data.kernels.utf8 import BASIS, PRIME, SPACE, decode, kinds_of, mixed, next_line, next_word

if TYPE_CHECKING:
    from nbllm.data.arrow_text import Texts
    from nbllm.data.quality.characters import CharacterTable

# The columns of the shares.
SHARES = (
    "duplicate_lines",
    "duplicate_paragraphs",
    "duplicate_line_characters",
    "duplicate_paragraph_characters",
    *(f"top_{n}_gram" for n in (2, 3, 4)),
    *(f"duplicate_{n}_grams" for n in range(5, 11)),
)
ODD = np.uint64(0x9E3779B97F4A7C15)


@kernel
def bucket(value: np.uint64, mask: int) -> int:
    """Return where a hash is looked for first, of `mask + 1` buckets."""
    return np.int64(mixed(value)) & mask  # type: ignore[return-value]


@kernel
def first_places(
    hashes: NDArray[np.uint64], count: int, buckets: NDArray[np.int32], first: NDArray[np.int32]
) -> int:
    """Write at each of `count` places the first place with the same hash; return how many are not the first.

    Args:
        hashes: (places or more,) the hashes.
        count: Number of places.
        buckets: A power of two of at least twice as many slots; overwritten.
        first: (places or more,) the result.
    """
    slots = 16
    while slots < 2 * count:
        slots *= 2
    for slot in range(slots):
        buckets[slot] = -1
    mask = slots - 1
    repeats = 0
    for place in range(count):
        value = hashes[place]
        slot = bucket(value, mask)
        while buckets[slot] >= 0 and hashes[buckets[slot]] != value:
            slot = (slot + 1) & mask
        if buckets[slot] < 0:
            buckets[slot] = place
        else:
            repeats += 1
        first[place] = buckets[slot]
    return repeats


@kernel
def hash_ngrams(words: NDArray[np.uint64], count: int, n: int, hashes: NDArray[np.uint64]) -> int:
    """Write the hash of each n-gram of words; return how many there are."""
    power = np.uint64(1)
    for _ in range(n):
        power *= ODD
    value = np.uint64(0)
    for place in range(count):
        value = value * ODD + words[place]
        if place >= n:
            value -= words[place - n] * power
        if place >= n - 1:
            hashes[place - n + 1] = value
    return max(count - n + 1, 0)


@kernel
def most_frequent(first: NDArray[np.int32], count: int, tally: NDArray[np.int32]) -> tuple[int, int]:
    """Return the first place of what occurs most often, of several the earliest, and how often it occurs."""
    for place in range(count):
        tally[place] = 0
    for place in range(count):
        tally[first[place]] += 1
    best = 0
    for place in range(count):
        if tally[place] > tally[best]:
            best = place
    return best, tally[best] if count else 0


@kernel
def covered_by_top(
    first: NDArray[np.int32], count: int, n: int, lengths: NDArray[np.int32], tally: NDArray[np.int32]
) -> int:
    """Return the characters of the words that the most frequent n-gram covers; 0 where none occurs twice."""
    best, occurrences = most_frequent(first, count, tally)
    if occurrences < 2:
        return 0
    covered, behind = 0, 0
    for place in range(count):
        if first[place] == best:
            for word in range(max(place, behind), place + n):
                covered += lengths[word]
            behind = place + n
    return covered


@kernel
def covered_by_repeats(first: NDArray[np.int32], count: int, n: int, lengths: NDArray[np.int32]) -> int:
    """Return the characters of the words in n-grams that occurred before, each word once."""
    covered, behind = 0, 0
    for place in range(count):
        if first[place] != place:
            for word in range(max(place, behind), place + n):
                covered += lengths[word]
            behind = place + n
    return covered


@kernel
def skipped_repeats(
    hashes: NDArray[np.uint64], count: int, n: int, lengths: NDArray[np.int32], buckets: NDArray[np.int32]
) -> int:
    """Return the characters of repeated n-grams as datatrove counts them: what a repeat covers is not looked at."""
    slots = 16
    while slots < 2 * count:
        slots *= 2
    for slot in range(slots):
        buckets[slot] = -1
    mask = slots - 1
    covered, place = 0, 0
    while place < count:
        value = hashes[place]
        slot = bucket(value, mask)
        while buckets[slot] >= 0 and hashes[buckets[slot]] != value:
            slot = (slot + 1) & mask
        if buckets[slot] >= 0:
            for word in range(place, place + n):
                covered += lengths[word]
            place += n
        else:
            buckets[slot] = place
            place += 1
    return covered


@kernel
def repeated_length(first: NDArray[np.int32], lengths: NDArray[np.int32], count: int) -> tuple[int, int]:
    """Return the characters of what is not the first of its kind, and of all."""
    repeated, total = 0, 0
    for place in range(count):
        total += lengths[place]
        if first[place] != place:
            repeated += lengths[place]
    return repeated, total


@kernel
def share(part: int, whole: int) -> float:
    """Return part / whole; of nothing, 0."""
    return part / whole if whole else 0.0


@kernel
def find_lines(
    data: NDArray[np.uint8],
    start: int,
    stop: int,
    table: CharacterTable,
    hashes: NDArray[np.uint64],
    lengths: NDArray[np.int32],
    by_paragraph: bool,
) -> int:
    """Write hash and length of each line that is not blank, or of each group of lines between blank ones."""
    count = 0
    place = start
    inside = False
    while place < stop:
        first, end, place, value, length = next_line(data, place, stop, table)
        if first == end:
            inside = False
        elif by_paragraph and inside:
            hashes[count - 1] = mixed(hashes[count - 1]) * PRIME + value
            lengths[count - 1] += length
        elif count == hashes.shape[0]:
            break
        else:
            hashes[count], lengths[count] = value, length
            count += 1
            inside = True
    return count


@kernel
def split_at_line_feeds(
    data: NDArray[np.uint8],
    start: int,
    stop: int,
    least: int,
    hashes: NDArray[np.uint64],
    lengths: NDArray[np.int32],
) -> int:
    r"""Write hash and length in code points of each piece of `re.split("\n{least,}", text)`, empty ones too."""
    count, place = 0, start
    while count < hashes.shape[0]:
        value, length = BASIS, 0
        run = 0
        while place < stop:
            run = 0
            while place + run < stop and data[place + run] == 10:
                run += 1
            if run >= least:
                break
            run = 0
            code, place = decode(data, place, stop)
            value = (value ^ np.uint64(code)) * PRIME
            length += 1
        hashes[count], lengths[count] = mixed(value), length
        count += 1
        if run == 0:
            return count
        place += run
    return count


@kernel
def find_words(
    data: NDArray[np.uint8],
    start: int,
    stop: int,
    table: CharacterTable,
    hashes: NDArray[np.uint64],
    lengths: NDArray[np.int32],
    code_points: bool,
) -> int:
    """Write hash and length of each word; the length in code points, or in characters without extenders."""
    count, place = 0, start
    while count < hashes.shape[0]:
        first, place, value, length, points, _ = next_word(data, place, stop, table)
        if first == place:
            break
        hashes[count] = value
        lengths[count] = points if code_points else length
        count += 1
    return count


@kernel
def trimmed(data: NDArray[np.uint8], start: int, stop: int, table: CharacterTable) -> tuple[int, int, int]:
    """Return first byte and byte behind the last of the text without the space at its ends, and all code points."""
    first, end, place, points = stop, start, start, 0
    while place < stop:
        code, following = decode(data, place, stop)
        if not kinds_of(code, table) & SPACE:
            first = min(first, place)
            end = following
        place = following
        points += 1
    return min(first, end), end, points


@kernel
def repetition(
    texts: Texts,
    table: CharacterTable,
    most: int,
    shares: NDArray[np.float64],
) -> None:
    """Fill `shares` (documents, len(SHARES)), which holds zeros, with what the paper describes; each is at most 1.

    Lines and paragraphs are those that are not blank, without the space at their ends; characters are those in them,
    or in words, without extenders. A word that two occurrences of an n-gram cover counts once.

    Args:
        texts: The documents.
        table: The kinds of all characters.
        most: How many words, and how many lines, of a document are looked at.
        shares: The result.
    """
    data, offsets, valid = texts.data, texts.offsets, texts.valid
    longest = 0
    for document in range(valid.shape[0]):
        longest = max(longest, offsets[document + 1] - offsets[document])
    room = min(most, longest // 2 + 1)
    slots = 16
    while slots < 2 * room:
        slots *= 2
    buckets = np.empty(slots, np.int32)
    hashes, words = np.empty(room, np.uint64), np.empty(room, np.uint64)
    lengths, first, tally = np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, np.int32)
    for document in range(valid.shape[0]):
        if not valid[document]:
            continue
        start, stop = offsets[document], offsets[document + 1]
        row = shares[document]
        for kind in range(2):
            count = find_lines(data, start, stop, table, hashes, lengths, kind == 1)
            repeats = first_places(hashes, count, buckets, first)
            if repeats:
                row[kind] = share(repeats, count)
                part, whole = repeated_length(first, lengths, count)
                row[2 + kind] = share(part, whole)
        num_words = find_words(data, start, stop, table, words, lengths, False)
        total = 0
        for word in range(num_words):
            total += lengths[word]
        for n in range(2, 11):
            count = hash_ngrams(words, num_words, n, hashes)
            if first_places(hashes, count, buckets, first) == 0:
                break  # a longer n-gram that is repeated begins with a shorter one that is
            if n < 5:
                row[2 + n] = share(covered_by_top(first, count, n, lengths, tally), total)
            else:
                row[2 + n] = share(covered_by_repeats(first, count, n, lengths), total)


@kernel
def repetition_as_code(
    texts: Texts,
    table: CharacterTable,
    most: int,
    shares: NDArray[np.float64],
) -> None:
    """Fill `shares` as datatrove's GopherRepetitionFilter measures it; see `repetition` for the arguments.

    Shares are of all code points of the document. N-grams overlap, so that a share can be above 1.
    """
    data, offsets, valid = texts.data, texts.offsets, texts.valid
    longest = 0
    for document in range(valid.shape[0]):
        longest = max(longest, offsets[document + 1] - offsets[document])
    room = min(most, longest // 2 + 2)
    slots = 16
    while slots < 2 * room:
        slots *= 2
    buckets = np.empty(slots, np.int32)
    hashes, words = np.empty(room, np.uint64), np.empty(room, np.uint64)
    lengths, first, tally = np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, np.int32)
    for document in range(valid.shape[0]):
        start, stop = offsets[document], offsets[document + 1]
        if not valid[document] or start == stop:
            continue
        row = shares[document]
        text_start, text_stop, points = trimmed(data, start, stop, table)
        for kind in range(2):
            if kind == 0:
                count = split_at_line_feeds(data, start, stop, 1, hashes, lengths)
            else:
                count = split_at_line_feeds(data, text_start, text_stop, 2, hashes, lengths)
            repeats = first_places(hashes, count, buckets, first)
            row[kind] = share(repeats, count)
            row[2 + kind] = share(repeated_length(first, lengths, count)[0], points)
        num_words = find_words(data, start, stop, table, words, lengths, True)
        for n in range(2, 11):
            count = hash_ngrams(words, num_words, n, hashes)
            if n < 5 and count > 0:
                first_places(hashes, count, buckets, first)
                best, occurrences = most_frequent(first, count, tally)
                length = n - 1
                for word in range(best, best + n):
                    length += lengths[word]
                row[2 + n] = share(length * occurrences, points)
            elif n >= 5:
                part = skipped_repeats(hashes, count, n, lengths, buckets)
                if part == 0:
                    break
                row[2 + n] = share(part, points)
