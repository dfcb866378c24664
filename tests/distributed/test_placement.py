"""What a rank is said to hold is what it holds, on meshes of 8 to 64 ranks of which all but one are imagined."""

from __future__ import annotations

import pytest

from nbllm.distributed import Plan, lay_out
from nbllm.distributed.mesh import AXES, axis_sizes
from nbllm.distributed.placement import Parameter, stages_of
from nbllm.distributed.sharded_tensors import local_part
from nbllm.models import build, make_config
from tests.distributed.measuring import fake_group

# Sizes that no number of ranks divides: the last ranks hold less.
SHAPE = {"vocab_size": 1003, "hidden_size": 48, "num_layers": 4, "num_heads": 8, "intermediate_size": 100}
PLANS = [
    (8, {"data": 8}),
    (8, {"data": 4, "tensor": 2}),
    (16, {"data": 2, "tensor": 8, "sequence": True}),
    (8, {"data": 8, "zero": 1}),
    (8, {"data": 8, "zero": 2}),
    (16, {"data": 4, "tensor": 4, "zero": 3}),
    (32, {"data": 32, "zero": 3, "shard": 8}),
    (16, {"data": 2, "pipeline": 4, "tensor": 2}),
    (8, {"data": 2, "pipeline": 2, "context": 2, "schedule": "interleaved"}),
    (64, {"data": 16, "context": 4, "zero": 3}),
    (64, {"data": 64, "zero": 3}),
]


def test_a_dimension_is_cut_as_torch_cuts_it():
    parameter = Parameter("weight", (10, 7), tensor_dim=1)
    assert [parameter.of_rank(tensor=4, tensor_rank=rank) for rank in range(4)] == [(10, 2)] * 3 + [(10, 1)]
    assert [parameter.of_rank(shards=4, shard=rank)[0] for rank in range(4)] == [3, 3, 3, 1]
    assert [parameter.of_rank(shards=8, shard=rank)[0] for rank in range(8)] == [2] * 5 + [0] * 3


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize(("ranks", "settings"), PLANS, ids=lambda value: str(value))
def test_every_rank_holds_what_is_said(family, ranks, settings):
    config = make_config(family, **SHAPE)
    plan = Plan(**settings).sized(ranks)
    stages = stages_of(config, plan, 1, 64)
    for rank in (0, 1, ranks // 2, ranks - 1):
        place = place_of(plan, rank)
        said = {
            each.name: each.of_rank(
                tensor=plan.tensor,
                tensor_rank=place["tensor"],
                shards=plan.num_shards,
                shard=place["shard"],
            )
            for unit in stages[place["pipeline"]]
            for each in unit.parameters
        }
        with fake_group(ranks, rank) as group:
            layout = lay_out(build(config), plan, group)
            held = {name: tuple(local_part(each).shape) for name, each in layout.parameters().items()}
        assert held == said


def place_of(plan, rank):
    place = {}
    for axis in reversed(AXES):
        rank, place[axis] = divmod(rank, axis_sizes(plan)[axis])
    return place


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bert", "albert", "rwkv", "mixtral"])
def test_units_are_all_of_a_network(family):
    heads = 1 if family == "rwkv" else 8
    config = make_config(family, **SHAPE | {"num_heads": heads})
    (units,) = stages_of(config, Plan(data=1), 2, 64)
    costs = config.costs(batch_size=2, sequence_length=64)
    assert sum(unit.elements() for unit in units) == costs.parameters
    assert sum(unit.flops for unit in units) == pytest.approx(costs.flops_per_token)
    kept = sum(sum(unit.kept.values()) for unit in units)
    assert kept == pytest.approx(sum(part.activations for part in costs.parts))


@pytest.mark.parametrize(
    ("family", "schedule"), [("gpt2", "1f1b"), ("llama", "interleaved"), ("t5", "gpipe")]
)
def test_stages_hold_all_of_a_network_and_what_several_need_more_than_once(family, schedule):
    config = make_config(family, **SHAPE)
    stages = stages_of(config, Plan(data=1, pipeline=2, schedule=schedule), 1, 64)
    names = [each.name for stage in stages for unit in stage for each in unit.parameters]
    tied = ["embedding.weight"] if config.tie_embeddings else []
    tied += ["decoder.positions.weight"] if family == "t5" else []  # which every layer of the decoder reads
    assert sorted(names) == sorted([*(name for name, _ in build(config).named_parameters()), *tied])
    assert {unit.name for unit in stages[0]} & {unit.name for unit in stages[1]} == set()
