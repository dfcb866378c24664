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


def rounded_steps(plans, dtype):
    return [take_steps("decoder", plan, steps=1, dtype=dtype) for plan in plans]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_of_what_computes_in_less_are_added_up_in_float32(two_ranks, dtype):
    # Batch by batch the same passes as in one process. Later steps would differ by rounding of the weights.
    plans = [{}, *({"zero": zero} for zero in range(4))]
    expected, *found = two_ranks(rounded_steps, plans, dtype)[0]
    for zero, steps in enumerate(found):
        # Where blocks are sharded, queries, keys and values are multiplied apart: their gradients are rounded apart.
        assert_equal_steps(steps, expected, tolerance=1e-5 if zero < 2 else 1e-2)
