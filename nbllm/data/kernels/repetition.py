"""How much of each document repeats itself: Gopher's table A1, as the paper says it and as its published code has it.

Lines, paragraphs and n-grams of words are compared by 64-bit hashes. Of a document, the first `most` words and lines
are looked at: the workspace stays small whatever the document.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.jit import kernel
from nbllm.data.kernels.utf8 import (
    BASIS,
    PRIME,
    SPACE,
    Lines,
    decode,
    kinds_of,
    mixed,
    new_lines,
    new_words,
    read_lines,
    read_words,
)

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
def new_buckets(room: int) -> NDArray[np.int32]:
    """Return a workspace for the hashes of `room` things: a power of two, of which half stays free."""
    slots = 16
    while slots < 2 * room:
        slots *= 2
    return np.empty(slots, np.int32)


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
def lengthen(
    words: NDArray[np.uint64],
    num_words: int,
    n: int,
    places: NDArray[np.int32],
    hashes: NDArray[np.uint64],
    count: int,
) -> int:
    """Make n-grams of words of the (n - 1)-grams at `places`; return how many there are: the last may have no word."""
    while count > 0 and places[count - 1] + n > num_words:
        count -= 1
    for index in range(count):
        hashes[index] = hashes[index] * ODD + words[places[index] + n - 1]
    return count


@kernel
def most_frequent(first: NDArray[np.int32], count: int, tally: NDArray[np.int32]) -> int:
    """Count what each place is the first of; return the earliest of those that occur most often."""
    for place in range(count):
        tally[place] = 0
    for place in range(count):
        tally[first[place]] += 1
    best = 0
    for place in range(count):
        if tally[place] > tally[best]:
            best = place
    return best


@kernel
def covered(
    places: NDArray[np.int32],
    first: NDArray[np.int32],
    count: int,
    n: int,
    lengths: NDArray[np.int32],
    only: int,
) -> int:
    """Return the characters of the words in n-grams, each word once.

    Args:
        places: (n-grams,) the first word of each, ascending.
        first: (n-grams,) the first n-gram that is the same.
        count: Number of n-grams.
        n: Words of each.
        lengths: (words,) characters of each.
        only: Of all occurrences of this one; -1: of those that occurred before.
    """
    characters, behind = 0, 0
    for index in range(count):
        if first[index] == only or (only < 0 and first[index] != index):
            for word in range(max(places[index], behind), places[index] + n):
                characters += lengths[word]
            behind = places[index] + n
    return characters


@kernel
def keep_repeated(
    places: NDArray[np.int32],
    hashes: NDArray[np.uint64],
    first: NDArray[np.int32],
    count: int,
    tally: NDArray[np.int32],
) -> int:
    """Keep those n-grams that occur more than once; return how many: a longer one that is repeated begins with one."""
    kept = 0
    for index in range(count):
        if tally[first[index]] > 1:
            places[kept], hashes[kept] = places[index], hashes[index]
            kept += 1
    return kept


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
def join_paragraphs(lines: Lines, count: int) -> int:
    """Make one entry of the lines between blank ones, in place: hash and length; return how many there are."""
    paragraphs = 0
    for line in range(count):
        if paragraphs and not lines.gaps[line]:
            lines.hashes[paragraphs - 1] = mixed(lines.hashes[paragraphs - 1]) * PRIME + lines.hashes[line]
            lines.lengths[paragraphs - 1] += lines.lengths[line]
        else:
            lines.hashes[paragraphs], lines.lengths[paragraphs] = lines.hashes[line], lines.lengths[line]
            paragraphs += 1
    return paragraphs


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
    buckets = new_buckets(room)
    hashes, words, lines = np.empty(room, np.uint64), new_words(room), new_lines(room)
    places, first, tally = np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, np.int32)
    for document in range(valid.shape[0]):
        if not valid[document]:
            continue
        start, stop = offsets[document], offsets[document + 1]
        row = shares[document]
        count, _, _ = read_lines(data, start, stop, table, lines)
        for kind in range(2):
            if kind == 1:
                count = join_paragraphs(lines, count)
            repeats = first_places(lines.hashes, count, buckets, first)
            if repeats:
                row[kind] = share(repeats, count)
                part, whole = repeated_length(first, lines.lengths, count)
                row[2 + kind] = share(part, whole)
        num_words, _ = read_words(data, start, stop, table, words)
        total = 0
        for word in range(num_words):
            places[word], hashes[word] = word, words.hashes[word]
            total += words.lengths[word]
        count = num_words
        for n in range(2, 11):
            count = lengthen(words.hashes, num_words, n, places, hashes, count)
            if first_places(hashes, count, buckets, first) == 0:
                break
            best = most_frequent(first, count, tally)
            row[2 + n] = share(covered(places, first, count, n, words.lengths, best if n < 5 else -1), total)
            count = keep_repeated(places, hashes, first, count, tally)


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
    buckets = new_buckets(room)
    hashes, words = np.empty(room, np.uint64), new_words(room)
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
        num_words, _ = read_words(data, start, stop, table, words)
        for n in range(2, 11):
            count = hash_ngrams(words.hashes, num_words, n, hashes)
            if n < 5 and count > 0:
                first_places(hashes, count, buckets, first)
                best = most_frequent(first, count, tally)
                length = n - 1
                for word in range(best, best + n):
                    length += words.points[word]
                row[2 + n] = share(length * tally[best], points)
            elif n >= 5:
                part = skipped_repeats(hashes, count, n, words.points, buckets)
                if part == 0:
                    break
                row[2 + n] = share(part, points)
