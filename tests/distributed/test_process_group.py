"""What a group of processes gives the loop: one decision for all, and sums of the same bits."""

from __future__ import annotations

import pytest
import torch

from nbllm.distributed.process_group import MESSAGE_BYTES, lost_a_peer


@pytest.mark.parametrize("size", [0, 10, MESSAGE_BYTES - 30, MESSAGE_BYTES, 3 * MESSAGE_BYTES])
def test_all_ranks_get_the_decision_of_rank_zero(two_ranks, size):
    def decide(size):
        from nbllm.distributed import ProcessGroup

        ranks = ProcessGroup()
        value = {"text": "é" * size, "list": [1, None, 0.1]} if ranks.rank == 0 else "not looked at"
        return ranks.rank, ranks.size, ranks.broadcast(value), ranks.broadcast(None)

    for rank, answer in enumerate(two_ranks(decide, size)):
        assert answer == (rank, 2, {"text": "é" * size, "list": [1, None, 0.1]}, None)


def tensors(rank):
    generator = torch.Generator().manual_seed(rank)
    shapes = [(3, 4), (0,), (1,), (700, 30), ()]
    made = [torch.randn(shape, generator=generator) for shape in shapes]
    made += [torch.randn(5, 6, generator=generator).T, torch.arange(4) + rank]  # one is not contiguous
    return [*made, torch.randn(8, generator=generator, dtype=torch.float64), made[0].bfloat16()]


def test_sums_are_those_of_torch_and_the_same_on_all_ranks(two_ranks):
    def add(make):
        from nbllm.distributed import ProcessGroup

        ranks = ProcessGroup()
        given = make(ranks.rank)
        ranks.sum(given)
        return given

    first, second = two_ranks(add, tensors)
    for one, two, a, b in zip(first, second, tensors(0), tensors(1), strict=True):
        assert torch.equal(one, a + b)
        assert torch.equal(one, two)


def test_large_tensors_are_summed_whole(two_ranks):
    def add(elements):
        from nbllm.distributed import ProcessGroup

        given = [torch.full((elements,), float(number)) for number in range(5)]
        ProcessGroup().sum(given)
        return [(float(t[0]), float(t[-1])) for t in given]

    elements = (4 << 20) + 1
    assert two_ranks(add, elements) == [[(2.0 * n, 2.0 * n) for n in range(5)]] * 2


def test_a_lost_peer_is_told_from_an_error_of_the_program():
    closed = "[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4321"
    assert lost_a_peer(RuntimeError(closed))
    assert lost_a_peer(torch.distributed.DistBackendError("NCCL error"))
    assert not lost_a_peer(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not lost_a_peer(ValueError(closed))
