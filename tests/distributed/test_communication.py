"""The bytes that a rank is said to send are those that torch's collectives are given."""

from __future__ import annotations

import pytest
import torch

from nbllm.distributed import Plan, lay_out
from nbllm.distributed.communication import all_reduced, gathered
from nbllm.models import build, make_config
from nbllm.objectives.causal_lm import CausalLM
from tests.distributed.measuring import Sent, fake_group

SHAPE = {"vocab_size": 1024, "hidden_size": 64, "num_layers": 4, "num_heads": 8, "max_positions": 64}
BATCH, LENGTH = 2, 64


@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_traffic_in_sizes_of_the_model(ranks):
    assert all_reduced(1.0, ranks) == 2 * (ranks - 1) / ranks
    config = make_config("gpt2", **SHAPE)
    model = 4.0 * config.costs().parameters  # in float32 parameters and gradients are of one size
    common = {"precision": "float32", "accumulation": 1}
    plain = Plan(data=ranks).explain(config, ranks, **common)
    assert sum(each.num_bytes for each in plain.traffic[0]) == pytest.approx(2 * (ranks - 1) / ranks * model)
    sharded = Plan(data=ranks, zero=3).explain(config, ranks, **common)
    assert sum(each.num_bytes for each in sharded.traffic[0]) == pytest.approx(
        3 * (ranks - 1) / ranks * model
    )
    assert gathered(model, 1) == 0


def sent(settings, accumulation, family):
    """What rank 0 of many sends in a step, by the collectives that it calls."""
    config, plan = make_config(family, **SHAPE), Plan(**settings)
    objective = CausalLM()
    ids = torch.randint(0, 1024, (BATCH, LENGTH + 1))
    batch = {"inputs": ids[:, :-1].contiguous(), "targets": ids[:, 1:].contiguous()}
    with fake_group(plan.ranks) as group:
        layout = lay_out(build(config), plan, group)
        with Sent() as counted:
            layout.forward_backward(
                [batch] * accumulation, lambda network, given: (*objective.loss(network, given), None), 1.0
            )
            layout.publish()
    report = plan.explain(
        config, plan.ranks, batch_size=BATCH, sequence_length=LENGTH, accumulation=accumulation,
        precision="float32",
    )  # fmt: skip
    return sum(counted.num_bytes.values()), sum(each.num_bytes for each in report.traffic[0])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [
        {"data": 8},
        {"data": 1, "tensor": 4},
        {"data": 1, "tensor": 4, "sequence": True},
        {"data": 2, "tensor": 4},
        {"data": 1, "tensor": 2, "activation_checkpointing": "full"},
        {"data": 8, "zero": 1},
        {"data": 8, "zero": 2},
        {"data": 8, "zero": 3},
        {"data": 8, "zero": 3, "shard": 2},
        {"data": 2, "tensor": 2, "zero": 3},
        {"data": 1, "context": 4},
        {"data": 2, "context": 2, "zero": 3},
    ],
    ids=str,
)
def test_a_rank_sends_what_is_said(settings, accumulation, family):
    found, said = sent(settings, accumulation, family)
    assert said == pytest.approx(found, rel=0.05)
