"""Spherical k-means: groups of vectors of similar direction."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

ROUNDS = 10
POINTS_PER_CENTRE = 64  # of the vectors that the centres are found from
BLOCK = 4096  # vectors compared at a time


def spherical_kmeans(vectors: NDArray[np.float32], order: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the cluster of each vector: the centre with the largest cosine.

    Args:
        vectors: (vector, dim), of length 1; may be mapped from a file.
        order: (vector) all vectors in an order that has nothing to do with what they are: the first are the first
            centres, and the centres are found from the first `count * POINTS_PER_CENTRE`.
        count: Number of clusters, at most that of the vectors.

    Source: Dhillon and Modha 2001, "Concept Decompositions for Large Sparse Text Data Using Clustering".
    """
    if count == 0:
        return np.empty(0, np.int64)
    points = vectors[np.sort(order[: count * POINTS_PER_CENTRE])]
    centres = np.array(vectors[order[:count]])
    for _ in range(ROUNDS):
        nearest = np.concatenate([(block @ centres.T).argmax(1) for block in _blocks(points)])
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, points)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        found = np.where(
            lengths > 0, sums / np.maximum(lengths, 1e-12), centres
        )  # an empty one stays where it was
        if np.array_equal(found, centres):
            break
        centres = found
    return np.concatenate([(block @ centres.T).argmax(1) for block in _blocks(vectors)])


def _blocks(vectors: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    for begin in range(0, len(vectors), BLOCK):
        yield vectors[begin : begin + BLOCK]
