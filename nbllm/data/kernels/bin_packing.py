"""Which row each document goes into, where rows have one length."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.jit import kernel


@kernel
def greedy(sizes: NDArray[np.int64], length: int, rows: NDArray[np.int64]) -> int:
    """Put each piece into the current row, or where it does not fit, into a new one; return the number of rows.

    Args:
        sizes: int64 (pieces,), each from 1 to `length`.
        length: Of a row.
        rows: int64 (pieces,) buffer to fill.
    """
    num_rows = np.int64(0)
    space = np.int64(0)
    for piece in range(sizes.shape[0]):
        if sizes[piece] > space:
            num_rows += 1
            space = np.int64(length)
        rows[piece] = num_rows - 1
        space -= sizes[piece]
    return int(num_rows)


@kernel
def best_fit(sizes: NDArray[np.int64], length: int, rows: NDArray[np.int64]) -> int:
    """Put each piece into the row with the least space that is enough; return the number of rows.

    Rows are kept in a list for each amount of space, and a binary tree over the amounts finds the smallest one that is
    enough, in log2(length) steps.

    Args:
        sizes: int64 (pieces,), each from 1 to `length`; best in decreasing order.
        length: Of a row.
        rows: int64 (pieces,) buffer to fill.
    """
    width = np.int64(1)
    while width <= length:
        width *= 2
    some = np.zeros(2 * width, np.bool_)  # (node,) whether a row has an amount of space below this node
    first = np.full(length + 1, -1, np.int64)  # (space,) the last row that came to have it
    following = np.full(sizes.shape[0], -1, np.int64)  # (row,) the next in the list
    num_rows = np.int64(0)
    for piece in range(sizes.shape[0]):
        node = sizes[piece] + width
        while node > 1 and not some[node]:
            while node > 1 and node % 2 == 1:  # a right child: go on above
                node //= 2
            if node > 1:
                node += 1
        if node > 1:
            while node < width:
                node = 2 * node if some[2 * node] else 2 * node + 1
            space = node - width
            row = first[space]
            first[space] = following[row]
            if first[space] < 0:
                while node >= 1 and not (node < width and (some[2 * node] or some[2 * node + 1])):
                    some[node] = False
                    node //= 2
        else:
            row, space = num_rows, np.int64(length)
            num_rows += 1
        rows[piece] = row
        left = space - sizes[piece]
        following[row] = first[left]
        first[left] = row
        node = left + width
        while node >= 1 and not some[node]:
            some[node] = True
            node //= 2
    return int(num_rows)
