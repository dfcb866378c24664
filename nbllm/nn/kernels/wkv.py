"""RWKV's weighted mean of values, token by token, and its gradients; the channels of a sequence are independent.

A thread has some channels of one sequence. Sums of exponentials are kept as a number and the exponent of its scale, so
that no exponential exceeds 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nbllm.nn.kernels.compilation import EXACT, integer, kernel, matrix, part, vector, wide
from nbllm.nn.kernels.exponential import exp
from nbllm.nn.kernels.team import bounds, own_shares

_0, _LOWEST = np.float32(0), np.float32(-1e38)


@part(EXACT)
def _largest(one: np.float32, other: np.float32) -> np.float32:
    return one if one > other else other


@part(EXACT)
def _step(key: Any, value: Any, decay: Any, bonus: Any, state: Any, out: Any) -> None:
    """Set `out` to the mean at one token, and the state (numerator, denominator, exponent) to that after it."""
    wide()
    for place in range(len(key)):
        k, v, top = key[place], value[place], state[2, place]
        now = k + bonus[place]
        scale = _largest(top, now)
        before, own = exp(top - scale), exp(now - scale)
        out[place] = (before * state[0, place] + own * v) / (before * state[1, place] + own)
        old = top - decay[place]
        scale = _largest(old, k)
        before, own = exp(old - scale), exp(k - scale)
        state[0, place] = before * state[0, place] + own * v
        state[1, place] = before * state[1, place] + own
        state[2, place] = scale


@part(EXACT)
def _keep(state: Any, kept: Any) -> None:
    wide()
    for row in range(3):
        for place in range(state.shape[1]):
            kept[row, place] = state[row, place]


@part(EXACT)
def _step_back(
    key: Any, value: Any, decay: Any, bonus: Any, state: Any, back: Any, grad: Any, sums: Any
) -> None:
    """Replace key and value by their gradients at one token, from the last token to the first.

    With N / D the mean at a token, and A and B what earlier tokens add to N and D: `state` holds A, B and the exponent
    of their scale; `back` the gradients of A and B after this token and the exponent of theirs. `sums` gets the token's
    part of the gradients of decay and bonus.
    """
    wide()
    for place in range(len(key)):
        k, v, top = key[place], value[place], state[2, place]
        numerator, denominator, outer = back[0, place], back[1, place], back[2, place]
        now = k + bonus[place]
        scale = _largest(top, now)
        before, own = exp(top - scale), exp(now - scale)
        total = before * state[1, place] + own
        given = grad[place] / total
        mean = (before * state[0, place] + own * v) / total
        of_now = own * given * (v - mean)
        through = exp(k + outer)
        value[place] = own * given + through * numerator
        key[place] = of_now + through * (v * numerator + denominator)
        aged = exp(top - decay[place] + outer)
        sums[0, place] -= aged * (state[0, place] * numerator + state[1, place] * denominator)
        sums[1, place] += of_now
        old = outer - decay[place]
        outer = _largest(old, -scale)
        older, newest = exp(old - outer), exp(-scale - outer)
        back[0, place] = older * numerator + newest * given
        back[1, place] = older * denominator - newest * given * mean
        back[2, place] = outer


@part(EXACT)
def _share(share: int, shares: int, batch: int, channels: int) -> tuple[int, int, int]:
    """Return the sequence of a share, its first channel, and the first that is not in it any more."""
    per_sequence = shares // batch
    first, last = bounds(share % per_sequence, per_sequence, channels)
    return share // per_sequence, first, last


@kernel
def forward(data: Any) -> None:
    """Arguments: key, value (batch x position, channel); decay, bonus (channel); state (batch x 3, channel), replaced.

    Then out, like key; the states before each token (batch x position x 3, channel), or None; the batch's size.
    """
    key, value, decay, bonus = matrix(data, 1), matrix(data, 2), vector(data, 3), vector(data, 4)
    states, out, kept, batch = matrix(data, 5), matrix(data, 6), matrix(data, 7), integer(data, 8)
    length = len(key) // batch
    for share in own_shares(data):
        sequence, first, last = _share(share, data[0], batch, len(decay))
        state = states[3 * sequence : 3 * sequence + 3, first:last]
        for row in range(sequence * length, (sequence + 1) * length):
            if len(kept) > 0:
                _keep(state, kept[3 * row : 3 * row + 3, first:last])
            _step(
                key[row, first:last], value[row, first:last], decay[first:last], bonus[first:last], state,
                out[row, first:last],
            )  # fmt: skip


@kernel
def backward(data: Any) -> None:
    """Arguments: key, value (batch x position, channel), replaced by their gradients; decay, bonus (channel).

    Then the states before each token (batch x position x 3, channel); the gradient of the output, like key; sums (batch
    x 2, channel), which get the gradients of decay and bonus; the batch's size.
    """
    key, value, decay, bonus = matrix(data, 1), matrix(data, 2), vector(data, 3), vector(data, 4)
    states, grad, sums, batch = matrix(data, 5), matrix(data, 6), matrix(data, 7), integer(data, 8)
    length = len(key) // batch
    for share in own_shares(data):
        sequence, first, last = _share(share, data[0], batch, len(decay))
        back = np.empty((3, last - first), np.float32)
        back[:2] = _0
        back[2] = _LOWEST
        sums[2 * sequence : 2 * sequence + 2, first:last] = _0
        for place in range(length):
            row = (sequence + 1) * length - 1 - place
            _step_back(
                key[row, first:last], value[row, first:last], decay[first:last], bonus[first:last],
                states[3 * row : 3 * row + 3, first:last], back, grad[row, first:last],
                sums[2 * sequence : 2 * sequence + 2, first:last],
            )  # fmt: skip
