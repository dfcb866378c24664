import numpy as np
import pytest
import torch

from nbllm.nn.kernels import activations, team


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 2, 3, 64, 65, 1000])
def test_shares_cover_all_rows_once(rows):
    for shares in (1, 2, 5, 16):
        bounds = [team.bounds(share, shares, rows) for share in range(shares)]
        assert [first for first, _ in bounds] == [0] + [last for _, last in bounds[:-1]]
        assert bounds[-1][1] == rows


@pytest.mark.parametrize("shares", [1, 2, 3, 7])
def test_any_number_of_threads_gives_the_same_bits(threads, shares):
    draw = torch.Generator().manual_seed(0)
    slope, grad = torch.randn(2, 101, 33, generator=draw)
    results = []
    for count in (1, 2, 3):
        threads(count)
        out, totals = grad.clone(), torch.full((shares, 33), torch.nan)
        team.run(activations.multiply_and_sum_float32, shares, slope, out, totals)
        results.append((out, totals))
    for out, totals in results:
        assert torch.equal(out, slope * grad)
        assert torch.equal(totals, results[0][1])
        np.testing.assert_allclose(totals.sum(0), (slope * grad).double().sum(0), rtol=1e-4, atol=1e-4)


def test_what_is_not_contiguous_or_of_another_dtype_is_our_own_mistake():
    good = torch.zeros(4, 4)
    for bad in (good.double(), good.t()[:2]):
        with pytest.raises(AssertionError):
            team.run(activations.swiglu_float32, 1, bad, good)
