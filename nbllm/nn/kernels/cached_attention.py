"""Attention of a few tokens to all that the cache holds: memory that is read once, whatever heads share it.

Columns are taken in chunks, which the threads share out, and each chunk's weights have a scale of their own until all
are put together. A row's chunks begin at its own first column, so its numbers are the same in any company.

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

CHUNK = 64  # columns: keys and values of a head fit a core's first cache
_0, _1, _INFINITY = np.float32(0), np.float32(1), np.float32(math.inf)


@part(EXACT)
def num_chunks(columns: int) -> int:
    """Return into how many chunks columns are divided."""
    return (columns + CHUNK - 1) // CHUNK


@part(SUMS)
def _exponentials(scores: Any, scale: np.float32) -> tuple[np.float32, np.float32]:
    """Turn scores, times scale, into exponentials of their distance from the largest; return that and the sum."""
    wide()
    most = scores[0]
    for place in range(len(scores)):
        most = max(most, scores[place])
    shift = most if most > -_INFINITY else _0  # a chunk may have no weight at all
    total = _0
    for place in range(len(scores)):
        scores[place] = exp((scores[place] - shift) * scale)
        total += scores[place]
    return most * scale, total


@part(EXACT)
def _mix(values: Any, shares: Any, out: Any) -> None:
    """Set `out` to the sum of the rows of values, of each its share."""
    wide()
    out[:] = _0
    whole = len(shares) // 4 * 4
    for first in range(0, whole, 4):
        one, two, three, four = values[first], values[first + 1], values[first + 2], values[first + 3]
        by_1, by_2, by_3, by_4 = shares[first], shares[first + 1], shares[first + 2], shares[first + 3]
        for place in range(len(out)):
            front = widened(one[place]) * by_1 + widened(two[place]) * by_2
            out[place] += front + (widened(three[place]) * by_3 + widened(four[place]) * by_4)
    for each in range(whole, len(shares)):
        for place in range(len(out)):
            out[place] += widened(values[each, place]) * shares[each]


@part(EXACT)
def _columns(plan: Any, layer: Any, head: int, begin: int, count: int, like: Any) -> Any:
    """Return what the cache (keys and values, sequence, head, column, head_dim) holds of one head in some columns."""
    columns = 2 * plan.batch * plan.kv_heads * plan.capacity
    first = head * plan.capacity + begin
    return carray(weights_at(layer.cache, like), (columns, plan.head_dim))[first : first + count]


@part(EXACT)
def attend(plan: Any, layer: Any, like: Any) -> None:
    """Let this thread's chunks, of all rows and heads, give what they hold: largest score, sum, mixed values."""
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
    """Put together what the chunks gave, for this thread's share of rows and heads."""
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
    """Set `out` to what the chunks, each as `attend` left it, give together."""
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
