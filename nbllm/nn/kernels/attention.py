"""Causal attention, whole heads to a thread: what belongs to one head stays in one core's cache.

Queries, keys and values are read, and gradients written, where they lie; the strides say where. Matrices are
multiplied by BLAS: a block of queries with just the keys that it may see.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nbllm.nn.kernels.compilation import (
    EXACT,
    SUMS,
    bits_of_float,
    float_of_bits,
    integer,
    kernel,
    matrix_at,
    part,
    real,
)
from nbllm.nn.kernels.exponential import exp
from nbllm.nn.kernels.symbols import has_sgemm, sgemm
from nbllm.nn.kernels.team import bounds, own_shares

if not has_sgemm:
    raise OSError("torch is not built with MKL, the one BLAS known to leave threads to its caller")

ROWS = 64  # queries in a block
FLOAT = 4  # bytes
_NONE, _TRANSPOSED = np.uint8(ord("N")), np.uint8(ord("T"))
_ZERO, _ONE = np.float32(0), np.float32(1)


@part(EXACT)
def matmul(shape: Any, left: Any, right: Any, out: Any, factors: Any, workspace: Any) -> None:
    """Set out = scale left right + keep out, for row-major matrices.

    Args:
        shape: Rows and columns of `out`, and the length of the sums between.
        left: Its address, floats from row to row, and whether it is to be transposed.
        right: The same.
        out: Its address and floats from row to row.
        factors: `scale` and `keep`.
        workspace: Where BLAS reads its arguments: arrays of 6 integers, 2 floats and 2 letters.
    """
    sizes, factors_at, letters = workspace
    # BLAS counts by columns: it is asked for the transpose, right^T left^T.
    letters[0] = _TRANSPOSED if right[2] else _NONE
    letters[1] = _TRANSPOSED if left[2] else _NONE
    sizes[0], sizes[1], sizes[2] = shape[1], shape[0], shape[2]
    sizes[3], sizes[4], sizes[5] = right[1], left[1], out[1]
    factors_at[0], factors_at[1] = factors[0], factors[1]
    size, factor, letter = sizes.ctypes.data, factors_at.ctypes.data, letters.ctypes.data
    sgemm(
        letter, letter + 1, size, size + 4, size + 8, factor, right[0], size + 12, left[0], size + 16,
        factor + 4, out[0], size + 20,
    )  # fmt: skip


@part(EXACT)
def _in_order(bits: np.int32) -> np.int32:
    """Map the bits of a float to an integer, so that integers are in the order of the floats; and back."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@part(EXACT)
def _largest(row: Any, count: int) -> Any:
    """Return the largest of the first `count`, as integers: those become vectors without leave to ignore NaN."""
    largest = np.int32(-(2**31))
    for place in range(count):
        value = _in_order(bits_of_float(row[place]))
        largest = value if value > largest else largest
    return float_of_bits(_in_order(largest))


@part(SUMS)
def softmax_row(row: Any, count: int) -> None:
    """Set the first `count` elements to their softmax and all others to 0."""
    largest, total = _largest(row, count), _ZERO
    for place in range(count):
        power = exp(row[place] - largest)
        row[place] = power
        total += power
    share = _ONE / total
    for place in range(count):
        row[place] *= share
    row[count:] = _ZERO


@part(SUMS)
def softmax_backward_row(weights: Any, grad: Any, count: int) -> None:
    """Turn the gradient of the first `count` weights into that of the scores; set all others to 0."""
    mean = _ZERO
    for place in range(count):
        mean += weights[place] * grad[place]
    for place in range(count):
        grad[place] = weights[place] * (grad[place] - mean)
    grad[count:] = _ZERO


@part(EXACT)
def _head(data: Any, argument: int, sequence: int, head: int) -> tuple[int, int]:
    """Return the address of a head in an argument of 4 (address, strides in floats), and its row stride."""
    by_sequence, by_head = integer(data, argument + 1), integer(data, argument + 2)
    address = integer(data, argument) + FLOAT * (sequence * by_sequence + head * by_head)
    return address, integer(data, argument + 3)


@part(EXACT)
def _weights(
    query: Any, key: Any, first: int, last: int, sizes: Any, scale: Any, out: int, workspace: Any
) -> None:
    """Write what queries `first` to `last` of a head give each of the first `last` keys."""
    rows, head_dim = last - first, sizes[4]
    left = (query[0] + FLOAT * first * query[1], query[1], False)
    matmul((rows, last, head_dim), left, (key[0], key[1], True), (out, last), (scale, _ZERO), workspace)
    weights = matrix_at(out, rows, last)
    for row in range(rows):
        softmax_row(weights[row], first + row + 1)


@part(EXACT)
def _sizes(data: Any) -> tuple[int, int, int, int, int]:
    """Sequences, heads, key/value heads, positions, head_dim."""
    return integer(data, 1), integer(data, 2), integer(data, 3), integer(data, 4), integer(data, 5)


@part(EXACT)
def _workspace() -> Any:
    """Return where a thread writes the arguments of BLAS."""
    return np.empty(6, np.int32), np.empty(2, np.float32), np.empty(2, np.uint8)


@part(EXACT)
def _kept_place(first: int) -> int:
    """Floats of all blocks before the one that begins at query `first`: rows * (rows + 2 rows + ...)."""
    blocks = first // ROWS
    return ROWS * ROWS * (blocks * (blocks + 1) // 2)


@kernel
def forward(data: Any) -> None:
    """Arguments: 5 sizes, scale, kept, elements kept a head, scratch, its elements a share; query, key, value, out.

    `kept` holds the weights of all heads, or is 0: then a share's scratch buffer serves.
    """
    sizes, scale, workspace = _sizes(data), real(data, 6), _workspace()
    heads, group, length, head_dim = sizes[1], sizes[1] // sizes[2], sizes[3], sizes[4]
    for share in own_shares(data):
        start, stop = bounds(share, data[0], sizes[0] * sizes[2])
        for task in range(start * group, stop * group):
            sequence, head = task // heads, task % heads
            query, out = _head(data, 11, sequence, head), _head(data, 23, sequence, head)
            key = _head(data, 15, sequence, head // group)
            value = _head(data, 19, sequence, head // group)
            for first in range(0, length, ROWS):
                last = min(first + ROWS, length)
                weights = integer(data, 9) + FLOAT * share * integer(data, 10)
                if integer(data, 7):
                    weights = integer(data, 7) + FLOAT * (task * integer(data, 8) + _kept_place(first))
                _weights(query, key, first, last, sizes, scale, weights, workspace)
                place = (out[0] + FLOAT * first * out[1], out[1])
                right = (value[0], value[1], False)
                matmul(
                    (last - first, head_dim, last),
                    (weights, last, False),
                    right,
                    place,
                    (_ONE, _ZERO),
                    workspace,
                )


@part(EXACT)
def _backward_of_block(
    heads: Any, block: Any, sizes: Any, scale: Any, add: bool, places: Any, workspace: Any
) -> None:
    """Write the gradient of a block's queries; set or add those of the keys and values that it sees."""
    query, key, value, grad, grad_query, grad_key, grad_value = heads
    first, last = block
    rows, head_dim = last - first, sizes[4]
    weights, grad_scores = places
    keep = _ONE if add else _ZERO
    own_grad = (grad[0] + FLOAT * first * grad[1], grad[1], False)
    own_query = (query[0] + FLOAT * first * query[1], query[1], False)
    transposed, key_shape = (weights, last, True), (last, head_dim, rows)
    matmul(key_shape, transposed, own_grad, grad_value, (_ONE, keep), workspace)
    matmul(
        (rows, last, head_dim),
        own_grad,
        (value[0], value[1], True),
        (grad_scores, last),
        (_ONE, _ZERO),
        workspace,
    )
    given, slopes = matrix_at(weights, rows, last), matrix_at(grad_scores, rows, last)
    for row in range(rows):
        softmax_backward_row(given[row], slopes[row], first + row + 1)
    place = (grad_query[0] + FLOAT * first * grad_query[1], grad_query[1])
    right = (key[0], key[1], False)
    matmul((rows, head_dim, last), (grad_scores, last, False), right, place, (scale, _ZERO), workspace)
    matmul(key_shape, (grad_scores, last, True), own_query, grad_key, (scale, keep), workspace)


@kernel
def backward(data: Any) -> None:
    """Arguments as those of `forward`; in the place of out: grad; then the gradients of query, key and value.

    A share's scratch buffer holds two blocks.
    """
    sizes, scale, workspace = _sizes(data), real(data, 6), _workspace()
    kv_heads, group, length = sizes[2], sizes[1] // sizes[2], sizes[3]
    for share in own_shares(data):
        start, stop = bounds(share, data[0], sizes[0] * kv_heads)
        scratch = integer(data, 9) + FLOAT * share * integer(data, 10)
        second = scratch + FLOAT * (integer(data, 10) // 2)
        for task in range(start * group, stop * group):
            sequence, head = task // sizes[1], task % sizes[1]
            shared = head // group
            query, key = _head(data, 11, sequence, head), _head(data, 15, sequence, shared)
            value, grad = _head(data, 19, sequence, shared), _head(data, 23, sequence, head)
            grad_query, grad_key = _head(data, 27, sequence, head), _head(data, 31, sequence, shared)
            heads = (query, key, value, grad, grad_query, grad_key, _head(data, 35, sequence, shared))
            final = (length - 1) // ROWS * ROWS
            # From the last block on, which sees all keys and so sets every row; those before it add.
            for first in range(final, -1, -ROWS):
                block = (first, min(first + ROWS, length))
                weights = scratch
                if integer(data, 7):
                    weights = integer(data, 7) + FLOAT * (task * integer(data, 8) + _kept_place(first))
                else:
                    _weights(query, key, first, block[1], sizes, scale, weights, workspace)
                add = first < final or head % group > 0
                _backward_of_block(heads, block, sizes, scale, add, (weights, second), workspace)
