"""The exponential function, in a form that becomes vector instructions."""

from __future__ import annotations

import numpy as np

from nbllm.nn.kernels.compilation import EXACT, bits_of_float, float_of_bits, part

_LOG2_E = np.float32(1.44269504088896341)
# ln 2 in two parts, the first short enough that a multiple of it is exact (Cody and Waite 1980).
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
# Adding this rounds to an integer, which then lies in the low bits.
_ROUND = np.float32(1.5 * 2**23)
_LOWEST, _HIGHEST = np.float32(-87.3), np.float32(89.0)
_C2, _C3, _C4 = np.float32(5.0000001201e-1), np.float32(1.6666665459e-1), np.float32(4.1665795894e-2)
_C5, _C6, _C7 = np.float32(8.3334519073e-3), np.float32(1.3981999507e-3), np.float32(1.9875691500e-4)
_ZERO, _ONE = np.float32(0), np.float32(1)


@part(EXACT)
def exp(x: np.float32) -> np.float32:
    """Return e^x within 2 units in the last place; 0 below -87.3, infinity from 88.4 on, NaN for NaN.

    Source: Moshier 1989, Cephes Mathematical Library, expf (the polynomial and the split of ln 2).
    """
    bounded = _HIGHEST if x > _HIGHEST else x
    bounded = _LOWEST if bounded < _LOWEST else bounded
    shifted = bounded * _LOG2_E + _ROUND
    exponent = shifted - _ROUND
    rest = bounded - exponent * _LN2_HIGH
    rest = rest - exponent * _LN2_LOW
    power = ((((_C7 * rest + _C6) * rest + _C5) * rest + _C4) * rest + _C3) * rest + _C2
    power = power * (rest * rest) + rest + _ONE
    scale = float_of_bits((bits_of_float(shifted) + np.int32(127)) << np.int32(23))
    return _ZERO if x < _LOWEST else power * scale
