"""Rank 0 gets the complete network, whatever part of it each rank holds; it computes alone then."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nbllm.distributed import Plan, lay_out
from tests.distributed.steps import SHAPES, Group, make_batch, make_network, make_objective

PLANS: dict[str, dict[str, Any]] = {
    "zero-1": {"zero": 1},
    "zero-3": {"zero": 3},
    "tensor": {"tensor": 2},
    "sequence": {"tensor": 2, "sequence": True},
    "context": {"context": 2},
    "pipeline": {"pipeline": 2},
}


def loss_of_the_whole(
    kind: str, plan: dict[str, Any], dtype: torch.dtype, in_float32: bool
) -> tuple[float, dict[str, Tensor]] | None:
    layout = lay_out(make_network(kind), Plan(**plan), Group(), dtype=dtype)
    with layout.whole_network(in_float32=in_float32) as network:
        if network is None:
            return None  # rank 0 must not need this one from here on
        with torch.no_grad():
            loss, _ = make_objective(kind).loss(network, make_batch(kind, 0))
        weights = {name: weight.detach().clone() for name, weight in network.named_parameters()}
        return float(loss), weights


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kind", SHAPES)
def test_it_is_that_of_one_process(two_ranks, kind, plan):
    whole, nothing = two_ranks(loss_of_the_whole, kind, PLANS[plan], torch.float32, False)
    network = make_network(kind)
    with torch.no_grad():
        expected, _ = make_objective(kind).loss(network, make_batch(kind, 0))
    loss, weights = whole
    assert nothing is None
    assert loss == pytest.approx(float(expected), rel=1e-6)
    assert list(weights) == [name for name, _ in network.named_parameters()]
    assert all(torch.equal(weights[name], weight) for name, weight in network.named_parameters())


@pytest.mark.parametrize("plan", ["zero-1", "zero-3", "tensor"])
def test_it_has_the_weights_that_are_trained_or_those_that_are_computed_with(two_ranks, plan):
    kind = next(iter(SHAPES))
    expected = dict(make_network(kind).named_parameters())
    for in_float32 in (True, False):
        (_, weights), _ = two_ranks(loss_of_the_whole, kind, PLANS[plan], torch.bfloat16, in_float32)
        for name, weight in expected.items():
            assert torch.equal(weights[name], weight if in_float32 else weight.bfloat16())
