"""Each kernel against a NumPy reference."""

import numba
import numpy as np
import pytest

from nbllm.data.kernels.jit import kernel
from nbllm.data.kernels.packing import append_documents
from nbllm.data.kernels.windows import mix, permute, window_starts

U = np.uint64


def reference_mix(value):
    with np.errstate(over="ignore"):
        value = np.asarray(value, U) + U(0x9E3779B97F4A7C15)
        value = (value ^ (value >> U(30))) * U(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> U(27))) * U(0x94D049BB133111EB)
        return value ^ (value >> U(31))


def reference_permute(index, size, key):
    """The Feistel network on whole arrays; what falls outside goes through it again."""
    half = 4
    while 4**half < size:
        half += 1
    half, mask = U(half), U(2**half - 1)
    index = np.asarray(index, U).copy()
    todo = np.ones(index.shape, bool)
    while todo.any():
        left, right = index[todo] >> half, index[todo] & mask
        for turn in range(6):
            with np.errstate(over="ignore"):
                turn_key = reference_mix(U(key) + U(turn))
            left, right = right, left ^ (reference_mix(right ^ turn_key) & mask)
        index[todo] = (left << half) | right
        todo = index >= U(size)
    return index


def reference_starts(first, count, stride, num_tokens, key):
    position = np.arange(first, first + count, dtype=U)
    num_windows = U(num_tokens // stride)
    starts = []
    for p in position:
        epoch_key = reference_mix(U(key) ^ reference_mix(p // num_windows))
        phase = reference_mix(epoch_key ^ U(0x9E3779B97F4A7C15)) % U(num_tokens)
        window = reference_permute(np.array([p % num_windows]), num_windows, epoch_key)[0]
        starts.append(int((phase + window * U(stride)) % U(num_tokens)))
    return np.array(starts, np.int64)


def test_mix_equals_the_reference_and_the_published_splitmix64():
    values = np.array([0, 1, 2**63, 2**64 - 1, 1234567], U)
    np.testing.assert_array_equal([mix(v) for v in values], reference_mix(values))
    # The first outputs of SplitMix64 seeded with 1234567, as published with the generator.
    state = 1234567
    for expected in (6457827717110365317, 3203168211198807973, 9817491932198370423):
        assert int(mix(U(state))) == expected
        state = (state + 0x9E3779B97F4A7C15) % 2**64


@pytest.mark.parametrize("size", [1, 2, 3, 255, 256, 257, 4099])
@pytest.mark.parametrize("key", [0, 2**64 - 1])
def test_permute_is_the_reference_bijection(size, key):
    index = np.arange(size, dtype=U)
    images = np.array([permute(i, U(size), U(key)) for i in index], U)
    np.testing.assert_array_equal(np.sort(images), index)
    np.testing.assert_array_equal(images, reference_permute(index, size, key))


def test_permute_is_near_uniform_over_all_permutations_of_four():
    images = np.array(
        [[int(permute(U(i), U(4), U(mix(U(key))))) for i in range(4)] for key in range(24 * 200)]
    )
    _, counts = np.unique(images, axis=0, return_counts=True)
    assert len(counts) == 24
    chi_squared = float(((counts - 200.0) ** 2 / 200.0).sum())
    assert chi_squared < 49.7  # 23 degrees of freedom, p = 0.001


@pytest.mark.parametrize(("num_tokens", "stride"), [(1000, 7), (64, 63), (100_003, 256)])
def test_window_starts_equal_the_reference(num_tokens, stride):
    starts = np.empty(50, np.int64)
    for first in (0, 30, 10**12):
        window_starts(first, stride, num_tokens, U(99), starts)
        np.testing.assert_array_equal(starts, reference_starts(first, 50, stride, num_tokens, 99))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("lengths", [[3, 0, 5], [0], [70_000]])
def test_append_documents_equals_concatenation(dtype, lengths):
    rng = np.random.default_rng(1)
    documents = [rng.integers(0, 60_000, n) for n in lengths]
    tokens = np.empty(sum(lengths) + len(lengths), dtype)
    ends = np.empty(len(lengths), np.int64)
    result = append_documents(
        np.concatenate(documents).astype(np.int64), np.array(lengths, np.int64), 60_000, 60_001, tokens, ends
    )
    assert result == -1
    np.testing.assert_array_equal(tokens, np.concatenate([np.append(d, 60_000) for d in documents]))
    np.testing.assert_array_equal(ends, np.cumsum([n + 1 for n in lengths]))


@pytest.mark.parametrize("bad", [-1, 10])
def test_append_documents_finds_the_first_id_out_of_range(bad):
    ids = np.array([1, 9, bad, bad], np.int64)
    tokens, ends = np.empty(6, np.uint16), np.empty(2, np.int64)
    assert append_documents(ids, np.array([2, 2], np.int64), 0, 10, tokens, ends) == 2


def test_a_kernel_that_cannot_be_kept_on_disk_still_compiles():
    """Numba refuses to cache what has no file to cache beside, as where no folder can be written."""
    names: dict = {}
    exec("def twice(x):\n    return 2 * x", names)
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(names["twice"])
    assert kernel(names["twice"])(21) == 42
