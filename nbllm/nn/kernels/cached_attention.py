"""Attention of a few tokens to all cached keys and values; those that several heads share are read once.

The cache's columns are divided into chunks, which the threads share, and each chunk's softmax has a scale of its own
until all are combined. A row's chunks begin at its own first column, so its result does not depend on other rows.

Source: Dao et al. 2023, Flash-Decoding, https://pytorch.org/blog/flash-decoding/.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray

from nbllm.nn.kernels.compilation import (
    EXACT,
    SUMS,
    integers_at,
    matrix_at,
    no_weights,
    part,
    weights_at,
    wide,
    widened,
)
from nbllm.nn.kernels.exponential import exp
from nbllm.nn.kernels.projections import project
from nbllm.nn.kernels.symbols import num_threads, thread_number
from nbllm.nn.kernels.team import bounds

CHUNK = 64  # columns: keys and values of a head fit a core's level-1 cache
_0, _1, _INFINITY = np.float32(0), np.float32(1), np.float32(math.inf)


@part(EXACT)
def num_chunks(columns: int) -> int:
    """Return into how many chunks columns are divided."""
    return (columns + CHUNK - 1) // CHUNK


@part(SUMS)
def _exponentials(scores: Any, scale: np.float32) -> tuple[np.float32, np.float32]:
    """Replace scores by exp(scale * (score - largest)); return scale * largest and the sum."""
    wide()
    most = scores[0]
    for place in range(len(scores)):
        most = max(most, scores[place])
    shift = most if most > -_INFINITY else _0  # all of a chunk's scores may be minus infinity
    total = _0
    for place in range(len(scores)):
        scores[place] = exp((scores[place] - shift) * scale)
        total += scores[place]
    return most * scale, total


@part(EXACT)
def _mix(values: Any, weights: Any, out: Any) -> None:
    """Set `out` to the sum of the rows of `values`, weighted by `weights`."""
    wide()
    out[:] = _0
    whole = len(weights) // 4 * 4
    for first in range(0, whole, 4):
        one, two, three, four = values[first], values[first + 1], values[first + 2], values[first + 3]
        w_1, w_2, w_3, w_4 = weights[first], weights[first + 1], weights[first + 2], weights[first + 3]
        for place in range(len(out)):
            front = widened(one[place]) * w_1 + widened(two[place]) * w_2
            out[place] += front + (widened(three[place]) * w_3 + widened(four[place]) * w_4)
    for each in range(whole, len(weights)):
        for place in range(len(out)):
            out[place] += widened(values[each, place]) * weights[each]


@part(EXACT)
def _columns(plan: Any, layer: Any, head: int, begin: int, count: int, like: Any) -> Any:
    """Return some columns of one head of the cache, which is (keys and values, sequence, head, column, head_dim)."""
    columns = 2 * plan.batch * plan.kv_heads * plan.capacity
    first = head * plan.capacity + begin
    return carray(weights_at(layer.cache, like), (columns, plan.head_dim))[first : first + count]


@part(EXACT)
def attend(plan: Any, layer: Any, like: Any) -> None:
    """For this thread's share of the chunks of all rows and heads: largest score, sum, weighted sum of the values."""
    thread, threads = thread_number(), num_threads()
    rows, heads, kv, size = plan.rows, plan.heads, plan.kv_heads, plan.head_dim
    group = heads // kv
    queries = matrix_at(plan.qkv, rows * (heads + 2 * kv), size)
    chunks = num_chunks(plan.capacity)
    partial = matrix_at(plan.partial, rows * heads * chunks, 2 + size)
    scores = matrix_at(plan.scores, threads * group, CHUNK)[thread * group : (thread + 1) * group]
    columns, padding = integers_at(plan.columns, rows), integers_at(plan.padding, rows)
    sequences = integers_at(plan.sequences, rows)
    scale = _1 / np.float32(math.sqrt(np.float32(size)))
    most = 0
    for row in range(rows):
        most = max(most, num_chunks(columns[row] + 1 - padding[row]))
    first, last = bounds(thread, threads, kv * most * rows)
    for item in range(first, last):
        row, chunk, head = item % rows, item // rows % most, item // rows // most
        begin = padding[row] + chunk * CHUNK
        count = min(CHUNK, columns[row] + 1 - begin)
        if count <= 0:
            continue
        keys = _columns(plan, layer, sequences[row] * kv + head, begin, count, like)
        values = _columns(plan, layer, (plan.batch + sequences[row]) * kv + head, begin, count, like)
        query = row * (heads + 2 * kv) + head * group
        project(keys, no_weights(like), queries[query : query + group], 0, count, scores)
        for number in range(group):
            made = partial[(row * heads + head * group + number) * chunks + chunk]
            own = scores[number, :count]
            made[0], made[1] = _exponentials(own, scale)
            _mix(values, own, made[2:])


@part(EXACT)
def gather(plan: Any) -> None:
    """Combine the chunks' results, for this thread's share of rows and heads."""
    rows, heads, size = plan.rows, plan.heads, plan.head_dim
    chunks = num_chunks(plan.capacity)
    partial = matrix_at(plan.partial, rows * heads * chunks, 2 + size)
    gathered = matrix_at(plan.gathered, rows * heads, size)
    columns, padding = integers_at(plan.columns, rows), integers_at(plan.padding, rows)
    first, last = bounds(thread_number(), num_threads(), rows * heads)
    for item in range(first, last):
        row = item // heads
        begin = item * chunks
        own = partial[begin : begin + num_chunks(columns[row] + 1 - padding[row])]
        _join(own, gathered[item])


@part(EXACT)
def _join(parts: Any, out: Any) -> None:
    """Set `out` to the attention over all chunks, of which `parts` holds what `attend` computed."""
    wide()
    most = parts[0, 0]
    for chunk in range(len(parts)):
        most = max(most, parts[chunk, 0])
    total = _0
    out[:] = _0
    for chunk in range(len(parts)):
        factor = exp(parts[chunk, 0] - most)
        total += parts[chunk, 1] * factor
        for place in range(len(out)):
            out[place] += parts[chunk, 2 + place] * factor
    for place in range(len(out)):
        out[place] /= total
