"""Count n-grams of words, and ask a model of them how probable a text is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.jit import kernel
from nbllm.data.kernels.utf8 import Words, new_words, read_words
from nbllm.data.kernels.word_features import ODD, workspace_size

if TYPE_CHECKING:
    from nbllm.data.arrow_text import Texts
    from nbllm.data.quality.characters import CharacterTable

START, END = np.uint64(1), np.uint64(2)  # what stands before and behind the words of a document
MOST_ORDER = 5


class Levels(NamedTuple):
    """An interpolated Kneser-Ney model; level k, from 1 to the order, is about k-grams.

    Attributes:
        keys: uint64 (k-grams of all levels,), hashes, ascending within a level.
        counts: float64, of each: how often it occurs (the highest level), or before how many words it stands.
        key_starts: int64 (order + 1,), where each level begins in `keys`.
        contexts: uint64 (contexts of all levels,), hashes of the first k - 1 words, ascending within a level.
        totals: float64, the sum of the counts of the k-grams that begin so.
        types: float64, how many different k-grams begin so.
        context_starts: int64 (order + 1,), where each level begins in `contexts`.
        discounts: float64 (order,), what is taken from each count.
    """

    keys: NDArray[np.uint64]
    counts: NDArray[np.float64]
    key_starts: NDArray[np.int64]
    contexts: NDArray[np.uint64]
    totals: NDArray[np.float64]
    types: NDArray[np.float64]
    context_starts: NDArray[np.int64]
    discounts: NDArray[np.float64]


@kernel
def find(keys: NDArray[np.uint64], start: int, stop: int, key: np.uint64) -> int:
    """Return where `key` is in an ascending part of `keys`, or -1."""
    behind = stop
    while start < stop:
        middle = (start + stop) // 2
        if keys[middle] < key:
            start = middle + 1
        else:
            stop = middle
    return start if start < behind and keys[start] == key else -1


@kernel
def word_at(words: Words, count: int, place: int) -> np.uint64:
    """Return the hash of a word; before the first and behind the last stand marks."""
    if place < 0:
        return START
    return words.hashes[place] if place < count else END


@kernel
def count_places(texts: Texts, table: CharacterTable, most: int) -> int:
    """Return how many words and ends of documents there are."""
    words = new_words(workspace_size(texts, most))
    total = 0
    for document in range(texts.valid.shape[0]):
        if texts.valid[document]:
            start, stop = texts.offsets[document], texts.offsets[document + 1]
            total += read_words(texts.data, start, stop, table, words)[0] + 1
    return total


@kernel
def collect(
    texts: Texts,
    table: CharacterTable,
    order: int,
    most: int,
    grams: NDArray[np.uint64],
    contexts: NDArray[np.uint64],
) -> None:
    """Write the hashes of the 1- to `order`-grams that end at each word, and of their words but the last.

    Args:
        texts: The documents.
        table: The kinds of all characters.
        order: Words of the longest.
        most: Words of a document that are read.
        grams: (places, order), the result; as many places as `count_places` says.
        contexts: (places, order), the result; 0 for a 1-gram.
    """
    words = new_words(workspace_size(texts, most))
    row = 0
    for document in range(texts.valid.shape[0]):
        if not texts.valid[document]:
            continue
        start, stop = texts.offsets[document], texts.offsets[document + 1]
        count, _ = read_words(texts.data, start, stop, table, words)
        for place in range(count + 1):
            gram, context, power = np.uint64(0), np.uint64(0), np.uint64(1)
            for k in range(order):
                contexts[row, k] = context
                gram += word_at(words, count, place - k) * power
                grams[row, k] = gram
                context += word_at(words, count, place - k - 1) * power
                power *= ODD
            row += 1


@kernel
def log_probability(words: Words, count: int, place: int, levels: Levels) -> float:
    """Return the natural logarithm of the probability of the word at `place` after those before it."""
    order = levels.discounts.shape[0]
    known = levels.key_starts[1] - levels.key_starts[0]
    result = 1.0 / (known + 1)  # every word that is known, and one for all that are not
    gram, context, power = np.uint64(0), np.uint64(0), np.uint64(1)
    for k in range(order):
        gram += word_at(words, count, place - k) * power
        at = find(levels.contexts, levels.context_starts[k], levels.context_starts[k + 1], context)
        if at < 0:
            break  # a longer context was not seen either
        found = find(levels.keys, levels.key_starts[k], levels.key_starts[k + 1], gram)
        discounted = max(levels.counts[found] - levels.discounts[k], 0.0) if found >= 0 else 0.0
        result = (discounted + levels.discounts[k] * levels.types[at] * result) / levels.totals[at]
        context += word_at(words, count, place - k - 1) * power
        power *= ODD
    return math.log(result)


@kernel
def perplexity(
    texts: Texts, table: CharacterTable, most: int, levels: Levels, result: NDArray[np.float64]
) -> None:
    """Fill `result` (documents,) with the perplexity by word, the end counted; NaN for a document without words."""
    words = new_words(workspace_size(texts, most))
    for document in range(texts.valid.shape[0]):
        start, stop = texts.offsets[document], texts.offsets[document + 1]
        count = 0
        if texts.valid[document]:
            count, _ = read_words(texts.data, start, stop, table, words)
        if not count:
            result[document] = np.nan
            continue
        total = 0.0
        for place in range(count + 1):
            total += log_probability(words, count, place, levels)
        result[document] = math.exp(-total / (count + 1))
