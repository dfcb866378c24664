"""Shingles and MinHash signatures of texts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import UserError
from nbllm.data.arrow_text import Texts
from nbllm.data.deduplication.characters import code_point_table, composed
from nbllm.data.kernels.minhash import minhash
from nbllm.data.kernels.shingles import BLOCK, max_shingles, shingle_texts


def shingles_of(
    texts: Texts, *, words: int = 5, characters: int = 2
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Return the hashed shingles of texts, in the order of each text.

    The text is compared in NFC and lower case; what is neither letter, mark, digit nor `_` only separates words.

    Args:
        texts: The documents; a null has none.
        words: Length of a shingle that begins with a word.
        characters: Length of one that begins with a character of a script without spaces between words.

    Returns:
        The shingles, uint32 (shingle,), and where each document's begin, int64 (document + 1,).

    Raises:
        UserError: A length is not between 1 and 1,023.
    """
    for name, length in (("words", words), ("characters", characters)):
        if not 1 <= length < BLOCK // 2:
            raise UserError(f"{name} is {length!r}; a shingle has 1 to {BLOCK // 2 - 1:,} of them.")
    texts = composed(texts)
    shingles = np.empty(max_shingles(texts.offsets), np.uint32)
    ends = np.empty(texts.num_documents + 1, np.int64)
    shingle_texts(*texts, code_point_table(), words, characters, shingles, ends)
    return shingles[: ends[-1]], ends


def permutations(count: int, seed: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return factors (odd) and terms of `count` permutations, each uint32 (permutation,); one after the other."""
    drawn = np.random.PCG64(seed).random_raw(2 * count) >> np.uint64(32)
    return drawn[0::2].astype(np.uint32) | np.uint32(1), drawn[1::2].astype(np.uint32)


def signatures_of(
    texts: Texts, *, num_permutations: int = 128, words: int = 5, characters: int = 2, seed: int = 0
) -> NDArray[np.uint32]:
    """Return the MinHash signatures of texts, uint32 (document, permutation).

    The share of equal values in two rows estimates the Jaccard similarity J of the documents' shingles, with variance
    J (1 - J) / permutations. A document without words has a row of 2^32 - 1, equal to others of its kind.

    Args:
        texts: The documents.
        num_permutations: Length of a signature.
        words: See `shingles_of`.
        characters: See `shingles_of`.
        seed: Names the permutations.
    """
    shingles, ends = shingles_of(texts, words=words, characters=characters)
    signatures = np.empty((texts.num_documents, num_permutations), np.uint32)
    minhash(shingles, ends, *permutations(num_permutations, seed), signatures)
    return signatures
