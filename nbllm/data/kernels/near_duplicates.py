"""Near-duplicates among sets of shingles: exact Jaccard similarities, clusters of documents, and who stays.

A document is a number: its place when all are ordered by id, so that the smaller number stays.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.jit import kernel

MOST_COMPARED = (
    1024  # documents of a bucket that a further one is compared with: half the first, half the last
)

# What `join_band` counts.
NUM_COMPARED, NUM_MATCHED, NUM_LEFT_OUT = 0, 1, 2


class ShingleSets(NamedTuple):
    """The shingles of documents: `shingles[begins[i]:begins[i] + sizes[i]]`, ascending and distinct.

    Attributes:
        shingles: uint32 (shingle,).
        begins: int64 (document,).
        sizes: int64 (document,).
    """

    shingles: NDArray[np.uint32]
    begins: NDArray[np.int64]
    sizes: NDArray[np.int64]


@kernel
def distinct(shingles: NDArray[np.uint32], ends: NDArray[np.int64]) -> int:
    """Sort each document's shingles and drop the repeated ones, in place.

    Args:
        shingles: (shingle) as `shingle_texts` writes them.
        ends: (document + 1) where each document's begin; set to where they are afterwards.

    Returns:
        The number of shingles left.
    """
    write = 0
    begin = ends[0]
    for document in range(ends.shape[0] - 1):
        stop = ends[document + 1]
        shingles[begin:stop].sort()
        for i in range(begin, stop):
            if i == begin or shingles[i] != shingles[i - 1]:
                shingles[write] = shingles[i]
                write += 1
        ends[document + 1] = write
        begin = stop
    return write


@kernel
def least_overlap(total: int, threshold: float) -> int:
    """Return how many shingles two sets of together `total` must share for a similarity of `threshold`."""
    overlap = max(int(threshold * total / (1.0 + threshold)) - 1, 1)
    while overlap / (total - overlap) < threshold:
        overlap += 1
    return overlap


@kernel
def jaccard(sets: ShingleSets, one: int, other: int, threshold: float) -> float:
    """Return the Jaccard similarity of two documents, or -1 as soon as it is known to be below `threshold`."""
    shingles = sets.shingles
    i, j = int(sets.begins[one]), int(sets.begins[other])
    i_size, j_size = int(sets.sizes[one]), int(sets.sizes[other])
    i_stop, j_stop = i + i_size, j + j_size
    total = i_size + j_size
    least = least_overlap(total, threshold)
    i_spare, j_spare = i_size - least, j_size - least  # shingles that may be missing in the other
    if i_spare < 0 or j_spare < 0:
        return -1.0
    overlap = 0
    while i < i_stop and j < j_stop:
        if shingles[i] == shingles[j]:
            overlap += 1
            i += 1
            j += 1
        elif shingles[i] < shingles[j]:
            i += 1
            i_spare -= 1
            if i_spare < 0:
                return -1.0
        else:
            j += 1
            j_spare -= 1
            if j_spare < 0:
                return -1.0
    if overlap < least:
        return -1.0
    return overlap / (total - overlap)


@kernel
def root(parents: NDArray[np.int64], document: int) -> int:
    """Return the first document of a document's cluster, and shorten the way to it."""
    while parents[document] != document:
        parents[document] = parents[parents[document]]
        document = int(parents[document])
    return document


@kernel
def roots(parents: NDArray[np.int64]) -> None:
    """Make every document point to the first one of its cluster."""
    for document in range(parents.shape[0]):  # a parent is smaller, so it points to its root already
        parents[document] = parents[parents[document]]


@kernel
def join_band(
    entries: NDArray[np.uint64],
    bits: int,
    sets: ShingleSets,
    threshold: float,
    parents: NDArray[np.int64],
    copies: NDArray[np.bool_],
    counts: NDArray[np.int64],
) -> None:
    """Join the documents of one band that share a key and whose similarity reaches the threshold.

    Documents that are joined already are not compared again. A document with exactly the shingles of another shares
    all its keys, and is not looked at again either. So a bucket of a thousand copies costs a thousand comparisons.

    Args:
        entries: (document) key in the high bits, document in the low ones; ascending.
        bits: How many bits hold the document.
        sets: The documents' shingles.
        threshold: Least similarity of two documents that are joined.
        parents: (document) the clusters as a forest, whose roots are the smallest documents; changed in place.
        copies: (document) whether it has exactly the shingles of a smaller one; changed in place.
        counts: (3) what has been counted: pairs compared, pairs that reached the threshold, and pairs left out because
            their bucket is larger than `MOST_COMPARED`; changed in place.
    """
    shift = np.uint64(bits)
    mask = (np.uint64(1) << shift) - np.uint64(1)
    bucket = np.empty(64, np.int64)
    begin = 0
    while begin < entries.shape[0]:
        key = entries[begin] >> shift
        stop = begin + 1
        while stop < entries.shape[0] and entries[stop] >> shift == key:
            stop += 1
        held = 0
        for place in range(begin, stop):
            document = int(np.int64(entries[place] & mask))
            if copies[document]:
                continue
            skipped = max(held - MOST_COMPARED, 0)
            counts[NUM_LEFT_OUT] += skipped
            for i in range(held - skipped):
                other = int(bucket[i if i < MOST_COMPARED // 2 else i + skipped])
                one_root, other_root = root(parents, document), root(parents, other)
                if one_root == other_root:
                    continue
                counts[NUM_COMPARED] += 1
                similarity = jaccard(sets, other, document, threshold)
                if similarity >= 0.0:
                    counts[NUM_MATCHED] += 1
                    parents[max(one_root, other_root)] = min(one_root, other_root)
                if similarity == 1.0:
                    copies[document] = True
                    break
            if copies[document]:
                continue
            if held == bucket.shape[0]:
                longer = np.empty(2 * held, np.int64)
                longer[:held] = bucket
                bucket = longer
            bucket[held] = document
            held += 1
        begin = stop


@kernel
def settle_clusters(
    members: NDArray[np.int64],
    sets: ShingleSets,
    threshold: float,
    parents: NDArray[np.int64],
    partners: NDArray[np.int64],
    similarities: NDArray[np.float64],
) -> None:
    """Decide which documents of each cluster stay.

    In the order of their ids, a document stays unless its similarity with one that stays reaches the threshold; its
    partner is the first such one. So a chain of documents, each like the next, does not take along one that is unlike
    all that stay.

    Args:
        members: (member) the documents of clusters of two and more, ordered by (root, document).
        sets: The documents' shingles.
        threshold: Least similarity.
        parents: (document) the first document of each one's cluster.
        partners: (member) buffer to fill: the document that each repeats, -1 for those that stay.
        similarities: (member) buffer to fill: how alike the two are, 0 for those that stay.
    """
    staying = np.empty(members.shape[0], np.int64)
    held = 0
    cluster = -1
    for place in range(members.shape[0]):
        document = int(members[place])
        if parents[document] != cluster:
            cluster = int(parents[document])
            held = 0
        partners[place] = -1
        similarities[place] = 0.0
        for i in range(held):
            similarity = jaccard(sets, int(staying[i]), document, threshold)
            if similarity >= 0.0:
                partners[place] = staying[i]
                similarities[place] = similarity
                break
        if partners[place] < 0:
            staying[held] = document
            held += 1


@kernel
def prefix_size(size: int, threshold: float) -> int:
    """Return how many of a set's least shingles one of any set of this similarity must share.

    Of the shingles of A at least `threshold` are in B; so at least one of any `size - ceil(threshold * size) + 1`.

    Source: Chaudhuri, Ganti and Kaushik 2006, "A Primitive Operator for Similarity Joins in Data Cleaning".
    """
    return min(size, size - math.ceil(threshold * size - 1e-9) + 1)


@kernel
def sample_keys(sets: ShingleSets, sample: NDArray[np.int64], threshold: float) -> NDArray[np.uint64]:
    """Return the least shingles of the documents of a sample: shingle in the high half, place in the sample below."""
    count = 0
    for place in range(sample.shape[0]):
        count += prefix_size(int(sets.sizes[sample[place]]), threshold)
    keys = np.empty(count, np.uint64)
    write = 0
    for place in range(sample.shape[0]):
        begin = sets.begins[sample[place]]
        for i in range(begin, begin + prefix_size(int(sets.sizes[sample[place]]), threshold)):
            keys[write] = (np.uint64(sets.shingles[i]) << np.uint64(32)) | np.uint64(place)
            write += 1
    return keys


@kernel
def compare_sample(
    sets: ShingleSets,
    sample: NDArray[np.int64],
    keys: NDArray[np.uint64],
    copies: NDArray[np.bool_],
    threshold: float,
    parents: NDArray[np.int64],
    found: NDArray[np.int64],
    true: NDArray[np.int64],
) -> None:
    """Compare the documents of a sample with all others exactly, which no hash of a band has a part in.

    Two similar sets share one of their least shingles: only the documents that share one are compared.

    Args:
        sets: The documents' shingles.
        sample: (sampled) documents that are no copies.
        keys: (key) the `sample_keys`, ascending.
        copies: (document) those with exactly the shingles of a smaller one, which are not counted.
        threshold: Least similarity.
        parents: (document) the first document of each one's cluster.
        found: (sampled) buffer to fill: documents similar to each that are in its cluster.
        true: (sampled) buffer to fill: documents similar to each.
    """
    seen = np.zeros(1 << 20, np.bool_)
    for key in keys:
        seen[key >> np.uint64(44)] = True
    found[:] = 0
    true[:] = 0
    compared = np.full(sample.shape[0], -1, np.int64)  # the last document that each was compared with
    for document in range(sets.sizes.shape[0]):
        if copies[document] or sets.sizes[document] == 0:
            continue
        begin = sets.begins[document]
        for i in range(begin, begin + prefix_size(int(sets.sizes[document]), threshold)):
            shingle = sets.shingles[i]
            if not seen[shingle >> np.uint32(12)]:
                continue
            entry = int(np.searchsorted(keys, np.uint64(shingle) << np.uint64(32)))
            while entry < keys.shape[0] and keys[entry] >> np.uint64(32) == np.uint64(shingle):
                place = int(np.int64(keys[entry] & np.uint64(0xFFFFFFFF)))
                entry += 1
                other = int(sample[place])
                if other == document or compared[place] == document:
                    continue
                compared[place] = document
                if jaccard(sets, other, document, threshold) >= 0.0:
                    true[place] += 1
                    found[place] += parents[other] == parents[document]
