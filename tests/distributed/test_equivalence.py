"""Every plan computes what one process does: losses, norms, gradients and weights after three steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from tests.distributed.steps import SHAPES, assert_equal_steps, take_steps

TWO: dict[str, dict[str, Any]] = {
    "data": {"data": 2},
    "zero 1": {"zero": 1},
    "zero 2": {"zero": 2},
    "zero 3": {"zero": 3},
    "zero 3, in the CPU's memory": {"zero": 3, "offload": "cpu"},
    "zero 3, blocks checkpointed": {"zero": 3, "activation_checkpointing": "full"},
    "tensor": {"tensor": 2},
    "sequence": {"tensor": 2, "sequence": True},
    "context": {"context": 2},
    "pipeline": {"pipeline": 2},
    "pipeline, gpipe": {"pipeline": 2, "schedule": "gpipe"},
}
FOUR: dict[str, dict[str, Any]] = {
    "zero 3, hybrid": {"zero": 3, "shard": 2},
    "data x pipeline": {"data": 2, "pipeline": 2},
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
    for number, kind in enumerate(SHAPES):
        held = [set(ranks[number].weights) for ranks in found]
        assert set.union(*held) == set(expected[kind].weights)
        for ranks, names in zip(found, held, strict=True):  # a stage of a pipeline has its own alone
            assert_equal_steps(ranks[number], part_of(expected[kind], names))


def part_of(steps, names):
    gradients, weights = (
        {name: each for name, each in of.items() if name in names} for of in (steps.gradients, steps.weights)
    )
    return dataclasses.replace(steps, gradients=gradients, weights=weights)


def rounded_steps(plans, dtype):
    return [take_steps("decoder", plan, steps=1, dtype=dtype) for plan in plans]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_of_what_computes_in_less_are_added_up_in_float32(two_ranks, dtype):
    # Batch by batch the same passes as in one process. Later steps would differ by rounding of the weights.
    plans = [{}, *({"zero": zero} for zero in range(4))]
    expected, *found = two_ranks(rounded_steps, plans, dtype)[0]
    for steps in found[:2]:
        assert_equal_steps(steps, expected)
    # Where blocks are sharded, queries, keys and values are multiplied apart, and their gradients rounded apart.
    for steps in found[2:]:
        assert steps.losses == pytest.approx(expected.losses, rel=1e-5)
        assert distance(steps.gradients, expected.gradients) < 1e-2


def distance(one, other):
    """Return the norm of the difference of all tensors, by that of the second."""
    pairs = [(one[name], other[name]) for name in other]
    error, size = (
        torch.cat([x.flatten() for x in part]).norm() for part in ([a - b for a, b in pairs], other.values())
    )
    return float(error / size)
