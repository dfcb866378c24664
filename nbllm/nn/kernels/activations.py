"""Activations and their derivatives in one pass over rows; a bias and its gradient with them.

Rows are float32 or bfloat16; all is computed in float32, and biases and sums are float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nbllm.nn.kernels.compilation import (
    BFLOAT16,
    EXACT,
    FLOAT32,
    kernel,
    matrix,
    matrix_of,
    narrowed,
    part,
    vector,
    wide,
    widened,
)
from nbllm.nn.kernels.exponential import exp
from nbllm.nn.kernels.gelu import C0, C1
from nbllm.nn.kernels.team import bounds, own_shares

_2C0, _2C0_C1 = np.float32(2 * C0), np.float32(2 * C0 * C1)
_3, _0, _1 = np.float32(3), np.float32(0), np.float32(1)
_FAR = np.float32(11)  # from here on tanh is 1 to the last bit, and its derivative 0


@part(EXACT)
def _gelu_row(x: Any, bias: Any, out: Any, like: Any) -> None:
    """Set out = gelu(x + bias) and x = its derivative there.

    With y = x + bias, z = 2 c0 (y + c1 y^3) and s the logistic function of z: gelu = y s, and its derivative is
    s + s (1 - s) y z'.
    """
    wide()
    for place in range(len(x)):
        y = widened(x[place]) + bias[place]
        near = _FAR if y > _FAR else y
        near = -_FAR if near < -_FAR else near
        cubic = _2C0_C1 * near * near
        share = _1 / (_1 + exp(-near * (_2C0 + cubic)))
        out[place] = narrowed(y * share, like)
        x[place] = narrowed(share + share * (_1 - share) * near * (_2C0 + _3 * cubic), like)


@part(EXACT)
def _slope_row(slope: Any, grad: Any, total: Any, like: Any) -> None:
    """Multiply `grad` by the slope, and add it to `total`."""
    wide()
    for place in range(len(slope)):
        value = widened(slope[place]) * widened(grad[place])
        grad[place] = narrowed(value, like)
        total[place] += value


@part(EXACT)
def _swiglu_row(gate: Any, up: Any, out: Any, like: Any) -> None:
    """Set out = silu(gate) * up."""
    wide()
    for place in range(len(gate)):
        given = widened(gate[place])
        share = _1 / (_1 + exp(-given))
        out[place] = narrowed(given * share * widened(up[place]), like)


@part(EXACT)
def _swiglu_backward_row(gate: Any, up: Any, grad: Any, grad_gate: Any, grad_up: Any, like: Any) -> None:
    """Set the gradients of gate and up, given that of silu(gate) * up."""
    wide()
    for place in range(len(gate)):
        given, by_out = widened(gate[place]), widened(grad[place])
        share = _1 / (_1 + exp(-given))
        value = given * share
        grad_up[place] = narrowed(by_out * value, like)
        grad_gate[place] = narrowed(by_out * widened(up[place]) * (share + value * (_1 - share)), like)


@part(EXACT)
def _gelu(data: Any, like: Any) -> None:
    """Arguments: x (row, column), replaced by the derivative; bias (column); out (row, column)."""
    x, bias, out = matrix_of(data, 1, like), vector(data, 2), matrix_of(data, 3, like)
    for share in own_shares(data):
        first, last = bounds(share, data[0], len(x))
        for row in range(first, last):
            _gelu_row(x[row], bias, out[row], like)


@part(EXACT)
def _multiply_and_sum(data: Any, like: Any) -> None:
    """Arguments: slope; grad (row, column), multiplied by it in place; totals (share, column) of both multiplied."""
    slope, grad, totals = matrix_of(data, 1, like), matrix_of(data, 2, like), matrix(data, 3)
    for share in own_shares(data):
        first, last = bounds(share, data[0], len(slope))
        totals[share, :] = _0
        for row in range(first, last):
            _slope_row(slope[row], grad[row], totals[share], like)


@part(EXACT)
def _swiglu(data: Any, like: Any) -> None:
    """Arguments: x (row, 2 column), gate and up side by side; out (row, column)."""
    x, out = matrix_of(data, 1, like), matrix_of(data, 2, like)
    size = out.shape[1]
    for share in own_shares(data):
        first, last = bounds(share, data[0], len(x))
        for row in range(first, last):
            _swiglu_row(x[row, :size], x[row, size:], out[row], like)


@part(EXACT)
def _swiglu_backward(data: Any, like: Any) -> None:
    """Arguments: x (row, 2 column); grad (row, column), of the output; out (row, 2 column), of x."""
    x, grad, out = matrix_of(data, 1, like), matrix_of(data, 2, like), matrix_of(data, 3, like)
    size = grad.shape[1]
    for share in own_shares(data):
        first, last = bounds(share, data[0], len(x))
        for row in range(first, last):
            own = out[row, :size], out[row, size:]
            _swiglu_backward_row(x[row, :size], x[row, size:], grad[row], own[0], own[1], like)


@kernel
def gelu_float32(data: Any) -> None:
    """Run `_gelu` on float32 rows."""
    _gelu(data, FLOAT32)


@kernel
def gelu_bfloat16(data: Any) -> None:
    """Run `_gelu` on bfloat16 rows."""
    _gelu(data, BFLOAT16)


@kernel
def multiply_and_sum_float32(data: Any) -> None:
    """Run `_multiply_and_sum` on float32 rows."""
    _multiply_and_sum(data, FLOAT32)


@kernel
def multiply_and_sum_bfloat16(data: Any) -> None:
    """Run `_multiply_and_sum` on bfloat16 rows."""
    _multiply_and_sum(data, BFLOAT16)


@kernel
def swiglu_float32(data: Any) -> None:
    """Run `_swiglu` on float32 rows."""
    _swiglu(data, FLOAT32)


@kernel
def swiglu_bfloat16(data: Any) -> None:
    """Run `_swiglu` on bfloat16 rows."""
    _swiglu(data, BFLOAT16)


@kernel
def swiglu_backward_float32(data: Any) -> None:
    """Run `_swiglu_backward` on float32 rows."""
    _swiglu_backward(data, FLOAT32)


@kernel
def swiglu_backward_bfloat16(data: Any) -> None:
    """Run `_swiglu_backward` on bfloat16 rows."""
    _swiglu_backward(data, BFLOAT16)
