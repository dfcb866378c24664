"""Layer and root-mean-square normalization by rows, with the residual addition before it.

Rows are float32 or bfloat16; all is computed in float32, and weights, statistics and sums are float32.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nbllm.nn.kernels.compilation import (
    BFLOAT16,
    FLOAT32,
    SUMS,
    integer,
    kernel,
    matrix,
    matrix_of,
    narrowed,
    part,
    real,
    vector,
    wide,
    widened,
)
from nbllm.nn.kernels.team import bounds, own_shares

_0, _1 = np.float32(0), np.float32(1)


@part(SUMS)
def _add_row(x: Any, branch: Any, out: Any, like: Any) -> None:
    wide()
    for place in range(len(x)):
        out[place] = narrowed(widened(x[place]) + widened(branch[place]), like)


@part(SUMS)
def _mean(x: Any) -> np.float32:
    wide()
    total = _0
    for place in range(len(x)):
        total += widened(x[place])
    return total / np.float32(len(x))


@part(SUMS)
def _scale(x: Any, mean: np.float32, eps: np.float32) -> np.float32:
    """Return 1 / sqrt(the mean square about `mean` + eps)."""
    wide()
    total = _0
    for place in range(len(x)):
        distance = widened(x[place]) - mean
        total += distance * distance
    return _1 / np.float32(math.sqrt(total / np.float32(len(x)) + eps))


@part(SUMS)
def _normalize_row(x: Any, statistics: Any, weight: Any, bias: Any, out: Any, like: Any) -> None:
    wide()
    mean, scale = statistics[0], statistics[1]
    for place in range(len(x)):
        out[place] = narrowed((widened(x[place]) - mean) * scale * weight[place] + bias[place], like)


@part(SUMS)
def _moments(x: Any, statistics: Any, weight: Any, grad: Any) -> tuple[np.float32, np.float32]:
    """Return the means of g and of g x', with g = grad weight and x' the normalized row."""
    wide()
    mean, scale = statistics[0], statistics[1]
    first, second = _0, _0
    for place in range(len(x)):
        given = widened(grad[place]) * weight[place]
        first += given
        second += given * ((widened(x[place]) - mean) * scale)
    return first / np.float32(len(x)), second / np.float32(len(x))


@part(SUMS)
def _backward_row(x: Any, statistics: Any, moments: Any, weight: Any, grad: Any, out: Any, like: Any) -> None:
    """Set out = scale (g - first - x' second)."""
    wide()
    mean, scale = statistics[0], statistics[1]
    first, second = moments
    for place in range(len(x)):
        normal = (widened(x[place]) - mean) * scale
        out[place] = narrowed(scale * (widened(grad[place]) * weight[place] - first - normal * second), like)


@part(SUMS)
def _backward_row_with(
    x: Any, statistics: Any, moments: Any, weight: Any, grad: Any, residual: Any, out: Any, like: Any
) -> None:
    """Do the same, and add `residual`."""
    wide()
    mean, scale = statistics[0], statistics[1]
    first, second = moments
    for place in range(len(x)):
        normal = (widened(x[place]) - mean) * scale
        value = scale * (widened(grad[place]) * weight[place] - first - normal * second)
        out[place] = narrowed(value + widened(residual[place]), like)


@part(SUMS)
def _total_row(x: Any, statistics: Any, grad: Any, grad_weight: Any, grad_bias: Any) -> None:
    """Add a row's share of the gradients of weight and bias."""
    wide()
    mean, scale = statistics[0], statistics[1]
    for place in range(len(x)):
        given = widened(grad[place])
        grad_weight[place] += given * ((widened(x[place]) - mean) * scale)
        grad_bias[place] += given


@part(SUMS)
def _forward(data: Any, like: Any) -> None:
    """Arguments: x, branch or None, their sum (row, column); weight, bias; out; statistics (row, 2); eps; centred.

    Without a branch, the sum is x itself. `statistics` gets what is subtracted, 0 unless `centred`, and the scale.
    """
    x, branch, added = matrix_of(data, 1, like), matrix_of(data, 2, like), matrix_of(data, 3, like)
    weight, bias, out, statistics = (
        vector(data, 4),
        vector(data, 5),
        matrix_of(data, 6, like),
        matrix(data, 7),
    )
    eps, centred = real(data, 8), integer(data, 9)
    for share in own_shares(data):
        first, last = bounds(share, data[0], len(x))
        for row in range(first, last):
            if len(branch) > 0:
                _add_row(x[row], branch[row], added[row], like)
            mean = _mean(added[row]) if centred else _0
            statistics[row, 0] = mean
            statistics[row, 1] = _scale(added[row], mean, eps)
            _normalize_row(added[row], statistics[row], weight, bias, out[row], like)


@part(SUMS)
def _backward(data: Any, like: Any) -> None:
    """Arguments: x (row, column); weight; statistics; grad; grad of the sum or None; out; totals twice; centred.

    The totals (share, column) are the shares' parts of the gradients of weight and bias.
    """
    x, weight, statistics = matrix_of(data, 1, like), vector(data, 2), matrix(data, 3)
    grad, residual, out = matrix_of(data, 4, like), matrix_of(data, 5, like), matrix_of(data, 6, like)
    grad_weight, grad_bias, centred = matrix(data, 7), matrix(data, 8), integer(data, 9)
    for share in own_shares(data):
        first, last = bounds(share, data[0], len(x))
        grad_weight[share, :] = _0
        grad_bias[share, :] = _0
        for row in range(first, last):
            moments = _moments(x[row], statistics[row], weight, grad[row])
            if not centred:
                moments = (_0, moments[1])
            if len(residual) > 0:
                _backward_row_with(
                    x[row], statistics[row], moments, weight, grad[row], residual[row], out[row], like
                )
            else:
                _backward_row(x[row], statistics[row], moments, weight, grad[row], out[row], like)
            _total_row(x[row], statistics[row], grad[row], grad_weight[share], grad_bias[share])


@kernel
def forward_float32(data: Any) -> None:
    """Run `_forward` on float32 rows."""
    _forward(data, FLOAT32)


@kernel
def forward_bfloat16(data: Any) -> None:
    """Run `_forward` on bfloat16 rows."""
    _forward(data, BFLOAT16)


@kernel
def backward_float32(data: Any) -> None:
    """Run `_backward` on float32 rows."""
    _backward(data, FLOAT32)


@kernel
def backward_bfloat16(data: Any) -> None:
    """Run `_backward` on bfloat16 rows."""
    _backward(data, BFLOAT16)
