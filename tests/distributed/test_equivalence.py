"""Every plan computes what one process does: losses, norms, gradients and weights after three steps."""

from __future__ import annotations

from typing import Any

import pytest

from tests.distributed.steps import SHAPES, assert_equal_steps, take_steps

TWO: dict[str, dict[str, Any]] = {
    "data": {"data": 2},
    "zero 1": {"zero": 1},
    "zero 2": {"zero": 2},
    "zero 3": {"zero": 3},
    "zero 3, blocks checkpointed": {"zero": 3, "activation_checkpointing": "full"},
    "tensor": {"tensor": 2},
    "sequence": {"tensor": 2, "sequence": True},
    "context": {"context": 2},
}
FOUR: dict[str, dict[str, Any]] = {
    "zero 3, hybrid": {"zero": 3, "shard": 2},
    "data x tensor": {"data": 2, "tensor": 2},
    "zero 3 x context": {"zero": 3, "context": 2},
    "zero 3 x tensor": {"zero": 3, "tensor": 2, "sequence": True},
}


@pytest.fixture(scope="module")
def expected(two_ranks):
    """The steps of one process, of as many threads as the ranks have."""
    return dict(zip(SHAPES, two_ranks(lambda: [take_steps(kind, {}) for kind in SHAPES])[0], strict=True))


def steps_of_all(plan):
    return [take_steps(kind, plan) for kind in SHAPES]


@pytest.mark.parametrize("plan", TWO.values(), ids=TWO)
def test_two_ranks_compute_what_one_process_does(two_ranks, expected, plan):
    check(two_ranks(steps_of_all, plan), expected)


@pytest.mark.parametrize("plan", FOUR.values(), ids=FOUR)
def test_four_ranks_compute_what_one_process_does(four_ranks, expected, plan):
    check(four_ranks(steps_of_all, plan), expected)


def check(found, expected):
    for ranks in found:
        for kind, steps in zip(SHAPES, ranks, strict=True):
            assert_equal_steps(steps, expected[kind])
