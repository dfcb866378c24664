"""Words and n-grams of words, hashed into buckets: the features of linear classifiers and of importance weights.

Source: Weinberger et al. 2009, "Feature hashing for large scale multitask learning", arXiv:0902.2206.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.jit import kernel
from nbllm.data.kernels.utf8 import Words, mixed, new_words, read_words

if TYPE_CHECKING:
    from nbllm.data.arrow_text import Texts
    from nbllm.data.quality.characters import CharacterTable

ODD = np.uint64(0x9E3779B97F4A7C15)


class Space(NamedTuple):
    """How text becomes features.

    Attributes:
        order: Words of the longest n-gram.
        buckets: How many features there are, a power of two.
        most: Words of a document that are read, at most.
    """

    order: int
    buckets: int
    most: int


@kernel
def workspace_size(texts: Texts, most: int) -> int:
    """Return how many words the workspace must hold: those of the longest document, or `most`."""
    longest = 0
    for document in range(texts.valid.shape[0]):
        longest = max(longest, texts.offsets[document + 1] - texts.offsets[document])
    return int(min(most, longest // 2 + 1))


@kernel
def read_features(
    texts: Texts,
    document: int,
    table: CharacterTable,
    space: Space,
    words: Words,
    features: NDArray[np.int64],
) -> int:
    """Write the bucket of each n-gram of a document's words, n from 1 to `space.order`; return how many there are."""
    if not texts.valid[document]:
        return 0
    start, stop = texts.offsets[document], texts.offsets[document + 1]
    count, _ = read_words(texts.data, start, stop, table, words)
    mask = np.uint64(space.buckets - 1)
    number = 0
    for place in range(count):
        value = np.uint64(0)
        for n in range(min(space.order, count - place)):
            value = value * ODD + words.hashes[place + n]
            features[number] = np.int64(mixed(value + np.uint64(n)) & mask)
            number += 1
    return number


@kernel
def probability(features: NDArray[np.int64], count: int, weights: NDArray[np.float32], bias: float) -> float:
    """Return the logistic function of the weights' sum, divided by the square root of how many there are, and bias."""
    total = 0.0
    for index in range(count):
        total += weights[features[index]]
    if count:
        total /= math.sqrt(count)
    return 1.0 / (1.0 + math.exp(-min(max(total + bias, -50.0), 50.0)))


@kernel
def train_pass(
    texts: Texts,
    table: CharacterTable,
    space: Space,
    examples: NDArray[np.int64],
    targets: NDArray[np.float32],
    parameters: NDArray[np.float32],
    squares: NDArray[np.float32],
    lr: float,
) -> float:
    """Go once over the examples by AdaGrad, one at a time; return the mean loss before each step.

    Args:
        texts: The documents.
        table: The kinds of all characters.
        space: How text becomes features.
        examples: (examples,) which documents, in order.
        targets: (documents,) 1 for what is wanted, 0 for what is not.
        parameters: (buckets + 1,) the weights and, last, the bias; changed.
        squares: (buckets + 1,) the sums of squared gradients so far; changed.
        lr: The learning rate.
    """
    size = workspace_size(texts, space.most)
    words, features = new_words(size), np.empty(size * space.order, np.int64)
    loss, last = 0.0, space.buckets
    for document in examples:
        count = read_features(texts, document, table, space, words, features)
        wanted = targets[document]
        found = probability(features, count, parameters, parameters[last])
        loss -= math.log(max(found if wanted > 0.5 else 1 - found, 1e-30))
        gradient = found - wanted
        squares[last] += gradient * gradient
        parameters[last] -= lr * gradient / math.sqrt(squares[last] + 1e-8)
        if count:
            gradient /= math.sqrt(count)
        for index in range(count):
            feature = features[index]
            squares[feature] += gradient * gradient
            parameters[feature] -= lr * gradient / math.sqrt(squares[feature] + 1e-8)
    return float(loss / max(examples.shape[0], 1))


@kernel
def classify(
    texts: Texts,
    table: CharacterTable,
    space: Space,
    parameters: NDArray[np.float32],
    result: NDArray[np.float64],
) -> None:
    """Fill `result` (documents,) with the probability that each document is wanted."""
    size = workspace_size(texts, space.most)
    words, features = new_words(size), np.empty(size * space.order, np.int64)
    for document in range(texts.valid.shape[0]):
        count = read_features(texts, document, table, space, words, features)
        result[document] = probability(features, count, parameters, parameters[space.buckets])


@kernel
def count_features(texts: Texts, table: CharacterTable, space: Space, counts: NDArray[np.int64]) -> None:
    """Add to `counts` (buckets,) how often each feature occurs."""
    size = workspace_size(texts, space.most)
    words, features = new_words(size), np.empty(size * space.order, np.int64)
    for document in range(texts.valid.shape[0]):
        for index in range(read_features(texts, document, table, space, words, features)):
            counts[features[index]] += 1


@kernel
def sum_weights(
    texts: Texts,
    table: CharacterTable,
    space: Space,
    weights: NDArray[np.float64],
    result: NDArray[np.float64],
    numbers: NDArray[np.int64],
) -> None:
    """Fill `result` (documents,) with the sum of the weights of each document's features, `numbers` with how many."""
    size = workspace_size(texts, space.most)
    words, features = new_words(size), np.empty(size * space.order, np.int64)
    for document in range(texts.valid.shape[0]):
        numbers[document] = read_features(texts, document, table, space, words, features)
        total = 0.0
        for index in range(numbers[document]):
            total += weights[features[index]]
        result[document] = total
