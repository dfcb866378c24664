"""MinHash signatures of sets of shingles, and the keys of their bands.

A permutation is x -> a x + b modulo 2^32 with an odd a, of shingles that are hashed well already. The least value of a
permutation over the shingles of two documents is equal with a probability that is the Jaccard similarity of the sets.
The inner loop runs over the shingles of one document for one permutation, a minimum of independent terms, which the
compiler makes SIMD code of; a document's shingles are padded with its first, so that there is no rest to do singly.

Source: Broder 1997, "On the resemblance and containment of documents"; Leskovec, Rajaraman and Ullman, "Mining of
Massive Datasets", chapter 3 (bands).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.jit import kernel
from nbllm.data.kernels.windows import mix

LANES = 64  # shingles are padded to a multiple of it: a wide register's lanes, unrolled
EMPTY = np.uint32(0xFFFFFFFF)  # the signature of a document without shingles


@kernel
def minhash(
    shingles: NDArray[np.uint32],
    ends: NDArray[np.int64],
    factors: NDArray[np.uint32],
    terms: NDArray[np.uint32],
    signatures: NDArray[np.uint32],
) -> None:
    """Write the signatures of documents.

    Args:
        shingles: (shingle) as `shingle_texts` writes them; repeated ones change nothing.
        ends: (document + 1) the shingles of document i are `shingles[ends[i]:ends[i + 1]]`.
        factors: (permutation) a, odd.
        terms: (permutation) b.
        signatures: (document, permutation) buffer to fill.
    """
    longest = np.int64(0)
    for document in range(ends.shape[0] - 1):
        longest = max(longest, ends[document + 1] - ends[document])
    padded = np.empty((longest + LANES) // LANES * LANES, np.uint32)
    for document in range(ends.shape[0] - 1):
        begin, count = ends[document], ends[document + 1] - ends[document]
        if count == 0:
            signatures[document, :] = EMPTY
            continue
        filled = (count + LANES - 1) // LANES * LANES
        padded[:count] = shingles[begin : begin + count]
        padded[count:filled] = padded[0]
        for permutation in range(factors.shape[0]):
            factor, term = factors[permutation], terms[permutation]
            least = EMPTY
            for i in range(filled):
                least = min(least, np.uint32(padded[i] * factor + term))
            signatures[document, permutation] = least


@kernel
def set_keys(shingles: NDArray[np.uint32], ends: NDArray[np.int64], keys: NDArray[np.uint64]) -> None:
    """Write a hash of each document's whole set.

    Args:
        shingles: (shingle) ascending and distinct within each document.
        ends: (document + 1) the shingles of document i are `shingles[ends[i]:ends[i + 1]]`.
        keys: (document) buffer to fill.
    """
    for document in range(keys.shape[0]):
        value = np.uint64(ends[document + 1] - ends[document])
        for i in range(ends[document], ends[document + 1]):
            value = mix(value ^ np.uint64(shingles[i]))
        keys[document] = value


@kernel
def band_keys(signatures: NDArray[np.uint32], keys: NDArray[np.uint64]) -> None:
    """Write a hash of each band of the signatures.

    Args:
        signatures: (document, band * row).
        keys: (band, document) buffer to fill.
    """
    bands = keys.shape[0]
    rows = signatures.shape[1] // bands
    for document in range(signatures.shape[0]):
        for band in range(bands):
            value = np.uint64(band)
            for row in range(rows):
                value = mix(value ^ np.uint64(signatures[document, band * rows + row]))
            keys[band, document] = value
