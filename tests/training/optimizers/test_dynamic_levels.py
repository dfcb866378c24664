"""The 8-bit data type beside its definition, element by element.

torchao 0.18 has the same values (to one unit in the last place of float32), and chooses the same codes but for a
value in 500,000 that lies in the middle of two; second moments close to zero excepted, which it rounds to zero.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nbllm.training.optimizers.dynamic_levels import dynamic_levels

CPU = torch.device("cpu")


def defined(signed):
    """All values, from their bits: sign, zeros, a one, then a fraction that is the middle of its interval."""
    values = {0.0, 1.0}
    bits = 7 if signed else 8
    for zeros in range(7):
        width = bits - 1 - zeros  # what is left after the zeros and the one
        for fraction in range(2**width):
            value = (0.1 + 0.9 * (fraction + 0.5) / 2**width) * 10.0**-zeros
            values |= {value, -value} if signed else {value}
    return np.array(sorted(values))


@pytest.mark.parametrize("signed", [True, False])
def test_values_are_those_of_the_definition(signed):
    values = dynamic_levels(signed, CPU).values
    assert len(values) == 256
    np.testing.assert_allclose(values.numpy(), defined(signed), rtol=1e-6, atol=0)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e6])
def test_each_value_gets_the_nearest_code(signed, scale):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 256)) * 10 ** rng.uniform(-8, 0, size=(64, 256))
    x = (x if signed else np.abs(x)).astype(np.float32) * np.float32(scale)
    levels = dynamic_levels(signed, CPU)
    codes, scales = levels.encode(torch.tensor(x))
    relative = x / np.abs(x).max(-1, keepdims=True)
    distance = np.abs(relative[..., None].astype(np.float64) - defined(signed))
    nearest = distance.min(-1)
    chosen = np.take_along_axis(distance, codes.numpy()[..., None].astype(np.int64), -1)[..., 0]
    kept = slice(None) if signed else relative > 1e-6  # below: never rounded to zero
    np.testing.assert_allclose(chosen[kept], nearest[kept], rtol=1e-4, atol=1e-8)
    if not signed:
        assert (codes.numpy() > 0).all()
    back = levels.decode(codes, scales)
    assert (back - torch.tensor(x)).abs().max() <= 0.011 * scales.max()


def test_blocks_of_zeros_stay_zeros():
    for signed in (True, False):
        levels = dynamic_levels(signed, CPU)
        codes, scales = levels.encode(torch.zeros(2, 64))
        assert not scales.any() and not levels.decode(codes, scales).any()
