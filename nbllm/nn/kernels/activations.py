"""Activations and their derivatives in one pass over rows; a bias and its gradient with them."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbllm.nn.kernels.compilation import EXACT, kernel, matrix, part, vector, wide
from nbllm.nn.kernels.exponential import exp
from nbllm.nn.kernels.gelu import C0, C1
from nbllm.nn.kernels.team import bounds, own_shares

_2C0, _2C0_C1 = np.float32(2 * C0), np.float32(2 * C0 * C1)
_3, _0, _1 = np.float32(3), np.float32(0), np.float32(1)
_FAR = np.float32(11)  # from here on tanh is 1 to the last bit, and its derivative 0


@part(EXACT)
def _gelu_row(x: Any, bias: Any, out: Any) -> None:
    """Set out = gelu(x + bias) and x = its derivative there.

    With y = x + bias, z = 2 c0 (y + c1 y^3) and s the logistic function of z: gelu = y s, and its derivative is
    s + s (1 - s) y z'.
    """
    wide()
    for place in range(len(x)):
        y = x[place] + bias[place]
        near = _FAR if y > _FAR else y
        near = -_FAR if near < -_FAR else near
        cubic = _2C0_C1 * near * near
        share = _1 / (_1 + exp(-near * (_2C0 + cubic)))
        out[place] = y * share
        x[place] = share + share * (_1 - share) * near * (_2C0 + _3 * cubic)


@part(EXACT)
def _slope_row(slope: Any, grad: Any, total: Any) -> None:
    """Multiply `grad` by the slope, and add it to `total`."""
    wide()
    for place in range(len(slope)):
        value = slope[place] * grad[place]
        grad[place] = value
        total[place] += value


@part(EXACT)
def _swiglu_row(gate: Any, up: Any, out: Any) -> None:
    """Set out = silu(gate) * up."""
    wide()
    for place in range(len(gate)):
        share = _1 / (_1 + exp(-gate[place]))
        out[place] = gate[place] * share * up[place]


@part(EXACT)
def _swiglu_backward_row(gate: Any, up: Any, grad: Any, grad_gate: Any, grad_up: Any) -> None:
    """Set the gradients by gate and up, given that by silu(gate) * up."""
    wide()
    for place in range(len(gate)):
        share = _1 / (_1 + exp(-gate[place]))
        value = gate[place] * share
        grad_up[place] = grad[place] * value
        grad_gate[place] = grad[place] * up[place] * (share + value * (_1 - share))


@kernel
def gelu(data: Any) -> None:
    """Arguments: x (row, column), turned into the derivative; bias (column); out (row, column)."""
    x, bias, out = matrix(data, 1), vector(data, 2), matrix(data, 3)
    for share in own_shares(data):
        first, last = bounds(share, data[0], len(x))
        for row in range(first, last):
            _gelu_row(x[row], bias, out[row])


@kernel
def multiply_and_sum(data: Any) -> None:
    """Arguments: slope; grad (row, column), multiplied by it in place; totals (share, column) of the products."""
    slope, grad, totals = matrix(data, 1), matrix(data, 2), matrix(data, 3)
    for share in own_shares(data):
        first, last = bounds(share, data[0], len(slope))
        totals[share, :] = _0
        for row in range(first, last):
            _slope_row(slope[row], grad[row], totals[share])


@kernel
def swiglu(data: Any) -> None:
    """Arguments: x (row, 2 column), gate and up side by side; out (row, column)."""
    x, out = matrix(data, 1), matrix(data, 2)
    size = out.shape[1]
    for share in own_shares(data):
        first, last = bounds(share, data[0], len(x))
        for row in range(first, last):
            _swiglu_row(x[row, :size], x[row, size:], out[row])


@kernel
def swiglu_backward(data: Any) -> None:
    """Arguments: x (row, 2 column); grad (row, column) by the output; out (row, 2 column), that by x."""
    x, grad, out = matrix(data, 1), matrix(data, 2), matrix(data, 3)
    size = grad.shape[1]
    for share in own_shares(data):
        first, last = bounds(share, data[0], len(x))
        for row in range(first, last):
            _swiglu_backward_row(x[row, :size], x[row, size:], grad[row], out[row, :size], out[row, size:])
