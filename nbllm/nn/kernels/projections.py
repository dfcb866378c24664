"""A few rows of activations times a matrix of weights, whose next rows are prefetched while these are used."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbllm.nn.kernels.compilation import EXACT, part, widened
from nbllm.nn.kernels.dots import LANES, ROWS, dots

_0 = np.float32(0)
_WEIGHTS = 4  # rows of weights at once


def _adding(count: int) -> Any:
    """Return a function that adds `count` rows of weights, from `place` on, times each row of x to `out`."""
    dots_of_1, dots_of_2, *more = (dots(count, rows) for rows in range(1, ROWS + 1))
    dots_of_3, dots_of_4 = more or (dots_of_1, dots_of_2)  # never called where `ROWS` is 2

    @part(EXACT)
    def add(weights: Any, place: int, x: Any, out: Any) -> None:
        here, size, columns, like = weights[place:].ctypes.data, x.shape[1], out.shape[1], weights[0, 0]
        # The processor's own prefetching stops at every row's end, so the next rows of weights are prefetched here: a
        # little with each vector, since much at once delays the loads that are waited for. Each pass over the weights
        # prefetches its part.
        ahead = here + count * size * weights.itemsize
        passes = (len(x) + ROWS - 1) // ROWS
        pace = count * LANES * weights.itemsize // passes
        for first in range(0, len(x), ROWS):
            at, rows = x[first:].ctypes.data, min(ROWS, len(x) - first)
            to = out[first, place:].ctypes.data, columns
            if rows == 4:
                dots_of_4(here, at, size, to, (ahead, pace), like)
            elif rows == 3:
                dots_of_3(here, at, size, to, (ahead, pace), like)
            elif rows == 2:
                dots_of_2(here, at, size, to, (ahead, pace), like)
            else:
                dots_of_1(here, at, size, to, (ahead, pace), like)
            ahead += size // LANES * pace

    return add


_add_one, _add_some = _adding(1), _adding(_WEIGHTS)


@part(EXACT)
def add_products(weights: Any, x: Any, first: int, last: int, out: Any) -> None:
    """Add rows `first` to `last` of weights times each row of x to `out` (row, place)."""
    place = first
    while place + _WEIGHTS <= last:
        _add_some(weights, place, x, out)
        place += _WEIGHTS
    while place < last:
        _add_one(weights, place, x, out)
        place += 1


@part(EXACT)
def project(weights: Any, bias: Any, x: Any, first: int, last: int, out: Any) -> None:
    """Set `out` (row, place) to rows `first` to `last` of weights times each row of x, plus bias.

    A bias of length 0: there is none.
    """
    for row in range(len(x)):
        for place in range(first, last):
            out[row, place] = widened(bias[place]) if len(bias) > 0 else _0
    add_products(weights, x, first, last, out)
