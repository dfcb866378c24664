import numpy as np
import pytest

numba = pytest.importorskip("numba")
pytest.importorskip("nbllm.nn.kernels.team", exc_type=OSError)
from nbllm.nn.kernels.dots import dots  # noqa: E402

SHAPES = [(1, 1), (1, 4), (4, 1), (4, 2), (4, 3), (4, 4)]


def adding(count, rows):
    add = dots(count, rows)

    @numba.njit
    def run(weights, x, out, first, like):
        there = out[0, first:].ctypes.data, out.shape[1]
        add(weights.ctypes.data, x.ctypes.data, x.shape[1], there, (weights.ctypes.data, 16), like)

    return run


def followed_by_nan(elements):
    """Return a copy after which the memory holds NaN, which would be seen in any sum."""
    memory = np.full(elements.size + 64, np.nan, np.float32)
    if elements.dtype == np.uint16:
        memory = np.full(elements.size + 64, 0x7FC0, np.uint16)
    memory[: elements.size] = elements.ravel()
    return memory[: elements.size].reshape(elements.shape)


@pytest.mark.parametrize("count, rows", SHAPES)
def test_dot_products_are_added_where_they_belong_and_nowhere_else(count, rows):
    run, rng = adding(count, rows), np.random.default_rng(0)
    for size in (1, 15, 16, 48, 577):
        weights, x = rng.normal(size=(count, size)), rng.normal(size=(rows, size)).astype(np.float32)
        single = weights.astype(np.float32)
        half = (single.view(np.uint32) >> 16).astype(np.uint16)
        for read, exact in ((single, single), (half, (half.astype(np.uint32) << 16).view(np.float32))):
            out = np.ones((rows, count + 3), np.float32)
            run(followed_by_nan(read), followed_by_nan(x), out, 2, read.dtype.type(0))
            expected = np.ones((rows, count + 3))
            expected[:, 2 : 2 + count] += x.astype(np.float64) @ exact.astype(np.float64).T
            np.testing.assert_allclose(out, expected, rtol=1e-5, atol=2e-5)


def test_a_sum_is_the_same_to_the_bit_whatever_is_computed_with_it():
    rng = np.random.default_rng(1)
    weights, x = (rng.normal(size=(4, 589)).astype(np.float32) for _ in range(2))
    sums = []
    for count, rows in SHAPES:
        out = np.zeros((rows, count), np.float32)
        adding(count, rows)(weights[:count], x[:rows], out, 0, np.float32(0))
        sums.append(out[0, 0])
    assert len(set(sums)) == 1
