"""Shingles of texts: hashes of runs of words, of characters in scripts without spaces, straight from UTF-8 bytes.

A text is read as tokens: a word, in lower case, or one character of a script that puts no spaces between words (with
the marks that follow). A shingle begins at each token and spans `words` tokens where it begins with a word,
`characters` tokens where it begins with a character. Those that would run past the end are left out; where the last
tokens then are in no shingle, as in a text shorter than that, one more spans them.

Only `BLOCK` tokens are held at a time, so that a single huge line needs no memory of its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.code_points import CHARACTER, KIND, KIND_SHIFT, LOWER, MARK, SEPARATOR, WORD, decode
from nbllm.data.kernels.jit import kernel

BLOCK = 2048  # tokens held at a time
SEED = np.uint64(0xCBF29CE484222325)
PRIME = np.uint64(0x9FB21C651E98DF25)
STEP = np.uint64(0xD6E8FEB86659FD93)
S32 = np.uint64(32)
S29 = np.uint64(29)


@kernel
def max_shingles(offsets: NDArray[np.int64]) -> int:
    """Return how many shingles the documents may have at most: a token and what separates it take two bytes."""
    most = 0
    for document in range(offsets.shape[0] - 1):
        most += int(offsets[document + 1] - offsets[document]) // 2 + 1
    return most


@kernel
def hash_tokens(tokens: NDArray[np.uint64], begin: int, stop: int) -> np.uint32:
    """Return the hash of `tokens[begin:stop]`."""
    value = np.uint64(stop - begin)
    for token in range(begin, stop):
        value = value * STEP + tokens[token]
    value = (value ^ (value >> S32)) * PRIME
    value = (value ^ (value >> S29)) * STEP
    return np.uint32(value >> S32)


@kernel
def shingle_block(
    tokens: NDArray[np.uint64],
    lengths: NDArray[np.int64],
    count: int,
    final: bool,
    covered: int,
    shingles: NDArray[np.uint32],
    write: int,
) -> tuple[int, int, int]:
    """Write the shingles that begin at the first tokens, and move those that are still needed to the front.

    Args:
        tokens: (BLOCK) hashes of tokens.
        lengths: (BLOCK) tokens of the shingle that begins at each.
        count: Tokens held.
        final: Whether the text ends behind them.
        covered: Tokens at the front that are in a shingle already written.
        shingles: Buffer to fill.
        write: Where its next entry goes.

    Returns:
        Where the next entry goes, how many tokens are left at the front, and how many of them are covered.
    """
    begin, rest = 0, -1
    while begin < count:
        length = int(lengths[begin])
        if begin + length <= count:
            shingles[write] = hash_tokens(tokens, begin, begin + length)
            write += 1
            covered = max(covered, begin + length)
        elif not final:
            break
        elif rest < 0:
            rest = begin
        begin += 1
    if final and covered < count:
        shingles[write] = hash_tokens(tokens, rest, count)
        write += 1
    for token in range(begin, count):
        tokens[token - begin] = tokens[token]
        lengths[token - begin] = lengths[token]
    return write, count - begin, max(covered - begin, 0)


@kernel
def shingle_texts(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    valid: NDArray[np.bool_],
    table: NDArray[np.uint32],
    words: int,
    characters: int,
    shingles: NDArray[np.uint32],
    ends: NDArray[np.int64],
) -> None:
    """Write the shingles of documents, in the order of their text, repeated ones too.

    Args:
        data: (byte) the documents' bytes.
        offsets: (document + 1) where each begins.
        valid: (document) whether it is no null, which has no shingles.
        table: (code point) see `kernels.code_points`.
        words: Tokens of a shingle that begins with a word, less than BLOCK.
        characters: Tokens of a shingle that begins with a character, less than BLOCK.
        shingles: (`max_shingles`) buffer to fill.
        ends: (document + 1) buffer to fill: the shingles of document i are `shingles[ends[i]:ends[i + 1]]`.
    """
    tokens = np.empty(BLOCK, np.uint64)
    lengths = np.empty(BLOCK, np.int64)
    size = table.shape[0]
    write = 0
    ends[0] = 0
    for document in range(offsets.shape[0] - 1):
        place, stop = offsets[document], offsets[document + 1] if valid[document] else offsets[document]
        count, covered = 0, 0
        value, opened = SEED, SEPARATOR
        while place < stop:
            byte = data[place]
            if byte < 0x80:
                entry = table[byte]
                place += 1
            else:
                point, place = decode(data, place, stop)
                entry = table[point] if point < size else np.uint32(0)
            kind = (entry >> KIND_SHIFT) & KIND
            if opened != SEPARATOR and kind != MARK and (kind != WORD or opened != WORD):
                tokens[count] = value
                lengths[count] = words if opened == WORD else characters
                count += 1
                opened = SEPARATOR
                if count == BLOCK:
                    write, count, covered = shingle_block(
                        tokens, lengths, count, False, covered, shingles, write
                    )
            if opened == SEPARATOR and (kind == WORD or kind == CHARACTER):
                value, opened = SEED, kind
            if opened != SEPARATOR:
                value = (value ^ np.uint64(entry & LOWER)) * PRIME
        if opened != SEPARATOR:
            tokens[count] = value
            lengths[count] = words if opened == WORD else characters
            count += 1
        write, count, covered = shingle_block(tokens, lengths, count, True, covered, shingles, write)
        ends[document + 1] = write
