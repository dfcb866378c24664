"""Which window of the token store is drawn at which position.

An epoch visits every window once, in the order of a keyed bijection (a balanced Feistel network, cycle-walked
onto the number of windows), so that no permutation is ever held in memory and the window at a position is a
function of (key, position) alone. Where the first window starts is drawn anew each epoch: the same text is cut
in other places. The store is read as a circle, so that every epoch has the same number of windows.

Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains" (cycle walking, Feistel);
Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators" (the mixing function).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.jit import kernel

# Typed constants: in Numba an int64 beside a uint64 makes a float64, which would lose the low bits.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
S27, S30, S31 = np.uint64(27), np.uint64(30), np.uint64(31)
ONE = np.uint64(1)
NUM_ROUNDS = 6
MIN_HALF_BITS = 4  # a Feistel network of fewer bits reaches only few permutations; cycle walking shrinks it


@kernel
def mix(value: np.uint64) -> np.uint64:
    """Return the SplitMix64 output for the state `value`."""
    value = value + GOLDEN
    value = (value ^ (value >> S30)) * MIX_1
    value = (value ^ (value >> S27)) * MIX_2
    return value ^ (value >> S31)


@kernel
def permute(index: np.uint64, size: np.uint64, key: np.uint64) -> np.uint64:
    """Return the image of `index` under the bijection of `[0, size)` that `key` names."""
    half_bits = np.uint64(MIN_HALF_BITS)
    while (ONE << (half_bits + half_bits)) < size:
        half_bits = half_bits + ONE
    mask = (ONE << half_bits) - ONE
    while True:
        left = index >> half_bits
        right = index & mask
        for turn in range(NUM_ROUNDS):
            left, right = right, left ^ (mix(right ^ mix(key + np.uint64(turn))) & mask)
        index = (left << half_bits) | right
        if index < size:
            return index


@kernel
def window_starts(
    first: int, stride: int, num_tokens: int, key: np.uint64, starts: NDArray[np.int64]
) -> None:
    """Write where the windows drawn at positions `first`, `first + 1`, ... start.

    Args:
        first: Number of windows drawn before.
        stride: Tokens from the start of one window to that of the next in the text; at most `num_tokens`.
        num_tokens: Tokens in the store.
        key: Names the order; the same key gives the same order.
        starts: (window) buffer to fill, each in `[0, num_tokens)`.
    """
    num_windows = np.uint64(num_tokens // stride)
    size = np.uint64(num_tokens)
    for row in range(starts.shape[0]):
        position = np.uint64(first + row)
        epoch_key = mix(key ^ mix(position // num_windows))
        phase = mix(epoch_key ^ GOLDEN) % size
        window = permute(position % num_windows, num_windows, epoch_key)
        starts[row] = np.int64((phase + window * np.uint64(stride)) % size)


@kernel
def mix_all(values: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """Return 64 bits for each value, which depend on it and the key alone."""
    result = np.empty_like(values)
    secret = mix(key)
    for place in range(values.shape[0]):
        result[place] = mix(values[place] ^ secret)
    return result
