"""The ranks that the tests of this folder share."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from tests.distributed.pool import Pool, RankError


def _sum(value: float) -> float:
    x = torch.tensor([value * (dist.get_rank() + 1)])
    dist.all_reduce(x)
    return float(x)


def test_all_ranks_take_part(two_ranks: Pool) -> None:
    assert two_ranks(_sum, 2.0) == [6.0, 6.0]
    assert two_ranks(lambda: dist.get_rank()) == [0, 1]


def test_the_rank_that_fails_is_named_though_the_others_wait_and_the_next_call_works(two_ranks: Pool) -> None:
    def fail() -> None:
        if dist.get_rank() == 1:
            raise ValueError("no such layer")
        dist.barrier()

    with pytest.raises(RankError, match=r"on rank 1 of 2:[\s\S]*no such layer"):
        two_ranks(fail)
    assert two_ranks(_sum, 1.0) == [3.0, 3.0]
