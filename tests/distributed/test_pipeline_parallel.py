"""A network divided over a pipeline computes what one process computes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.testing._internal.distributed.fake_pg import FakeStore

from nbllm.core.errors import UserError
from nbllm.distributed import OneRank, Plan, lay_out
from nbllm.models import build, make_config
from nbllm.objectives.measures import measure, recorded_measures
from tests.distributed.pool import RankError
from tests.distributed.steps import (
    LENGTH,
    SHAPES,
    Group,
    Steps,
    assert_equal_steps,
    make_batch,
    make_network,
    make_objective,
    take_steps,
)

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zero_bubble")


def joined(ranks: list[Steps]) -> Steps:
    """Return what the stages have as one; what several have must be equal."""
    first = ranks[0]
    for other in ranks[1:]:
        assert (other.losses, other.norms) == (first.losses, first.norms)
        for name in first.weights.keys() & other.weights.keys():
            assert torch.equal(first.weights[name], other.weights[name]), name
            assert torch.equal(first.gradients[name], other.gradients[name]), name
    gradients, weights = {}, {}
    for rank in ranks:
        gradients |= rank.gradients
        weights |= rank.weights
    return Steps(first.losses, first.norms, gradients, weights)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", SHAPES)
def test_steps_equal_those_of_one_process(two_ranks, kind, schedule):
    for micro_batches in (4, 8):
        given = {"steps": 2, "sequences": 2 * micro_batches, "num_layers": 4}
        found = two_ranks(take_steps, kind, {"pipeline": 2, "schedule": schedule}, **given)
        assert_equal_steps(joined(found), take_steps(kind, {}, **given))


@pytest.mark.parametrize("kind", SHAPES)
def test_with_data_tensor_or_context_ranks_steps_equal_those_of_one_process(four_ranks, kind):
    given = {"steps": 2, "sequences": 16, "num_layers": 4}
    expected = take_steps(kind, {}, **given)
    for plan in (
        {"pipeline": 2, "data": 2},
        {"pipeline": 2, "data": 2, "schedule": "zero_bubble"},
        {"pipeline": 2, "data": 2, "schedule": "interleaved", "zero": 1},
        {"pipeline": 2, "data": 2, "zero": 2},
        {"pipeline": 2, "data": 2, "zero": 3, "schedule": "gpipe"},
        {"pipeline": 2, "tensor": 2},
        {"pipeline": 2, "context": 2},
        {"pipeline": 2, "tensor": 2, "sequence": True, "schedule": "zero_bubble"},
    ):
        assert_equal_steps(joined(four_ranks(take_steps, kind, plan, **given)), expected)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_four_stages_with_every_place_of_norms(four_ranks, schedule):
    for kind, changes in (
        ("decoder", {"family": "opt-350m", "embedding_size": 16}),  # post, projections
        ("decoder", {"family": "gemma3", "sliding_window": 8, "full_attention_interval": 2}),  # sandwich
        ("untied", {"family": "gopher-44m"}),  # positions with a matrix for each layer
        ("encoder_decoder", {"family": "bart"}),  # post, a bias of the logits
    ):
        given = {"steps": 1, "sequences": 16, "num_layers": 8} | changes
        found = four_ranks(take_steps, kind, {"pipeline": 4, "schedule": schedule}, **given)
        assert_equal_steps(joined(found), take_steps(kind, {}, **given))


@pytest.mark.parametrize("plan", [{"pipeline": 2, "schedule": "zero_bubble"}, {"pipeline": 2}], ids=str)
def test_a_bfloat16_network_is_as_exact_as_in_one_process(two_ranks, plan):
    """Processes choose kernels, which round differently: both are held to float32."""
    given = {"steps": 1, "sequences": 16, "num_layers": 4}
    exact = take_steps("untied", {}, **given).gradients
    alone = take_steps("untied", {}, **given, dtype="bfloat16").gradients
    found = joined(two_ranks(take_steps, "untied", plan, **given, dtype="bfloat16")).gradients

    def error(gradients):
        return torch.cat([(gradients[name] - exact[name]).flatten() for name in exact]).norm()

    assert 0 < error(found) < 1.5 * error(alone)


def of_other_objective(kind, plan):
    """The gradients of four batches of a network that is read in another way, and what was measured."""
    shape = {"vocab_size": 96, "hidden_size": 32, "num_layers": 4, "num_heads": 4, "max_positions": 80}
    network = build(
        make_config(OTHERS[kind], **shape, **({"score_head": True} if kind == "reward" else {})), seed=1
    )
    layout = lay_out(network, Plan(**plan), Group() if plan else OneRank())
    batches = [
        make_batch("encoder_decoder" if kind == "prefix" else "decoder", number) for number in range(4)
    ]

    def loss(network, batch):
        if kind == "prefix":
            return *make_objective("encoder_decoder").loss(network, batch), None
        if kind == "reward":
            scores = network.scores(batch["inputs"], torch.tensor([30, 20]))
            measure("reward", scores.sum(), len(scores))
            return scores.square().sum(), len(scores), None
        logits = network.logits(network.hidden(batch["inputs"], attention_mask=batch["inputs"] > 9))
        return F.cross_entropy(logits.flatten(0, 1), batch["inputs"].flatten(), reduction="sum"), 64, None

    with recorded_measures() as measures:
        found = layout.forward_backward(batches, loss, 100.0)
        layout.evaluate(batches[0], loss)
    gradients = {n: p.grad for n, p in layout.parameters().items() if p.grad is not None}
    steps = Steps(list(found), [layout.norm(list(gradients.values()))], gradients, gradients)
    return steps, measures.means()


OTHERS = {"encoder": "bert", "prefix": "glm-base", "reward": "llama"}


@pytest.mark.parametrize("kind", OTHERS)
def test_encoders_prefix_decoders_and_reward_models(two_ranks, kind):
    for schedule in ("1f1b", "zero_bubble"):
        found = two_ranks(of_other_objective, kind, {"pipeline": 2, "schedule": schedule})
        expected, measured = of_other_objective(kind, {})
        assert_equal_steps(joined([steps for steps, _ in found]), expected)
        for _, means in found:
            assert means == pytest.approx(measured)
        assert ("reward" in measured) == (kind == "reward")


def steps_of_unlike_batches(kind, plan):
    """Micro-batches of three shapes, on the first blocks of which nothing is trained."""
    layout = lay_out(make_network(kind, num_layers=4), Plan(**plan), Group() if plan else OneRank())
    layout.freeze([name for name in layout.names if name.startswith(("embedding", "positions", "blocks.0"))])
    objective, batches = make_objective(kind), [make_batch(kind, number) for number in range(6)]
    for number, batch in enumerate(batches):
        batches[number] = {name: x[:, : LENGTH - 5 * (number % 3)] for name, x in batch.items()}
    found = layout.forward_backward(batches, lambda net, b: (*objective.loss(net, b), None), 100.0)
    more = layout.forward_backward(batches[:2], lambda net, b: (*objective.loss(net, b), None), 100.0)
    gradients = {n: p.grad for n, p in layout.parameters().items() if p.grad is not None}
    return Steps([*found, *more], [layout.norm(list(gradients.values()))], gradients, gradients)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", ["untied", "encoder_decoder"])
def test_micro_batches_of_several_shapes_add_to_the_gradients_of_what_is_trained(two_ranks, kind, schedule):
    found = two_ranks(steps_of_unlike_batches, kind, {"pipeline": 2, "schedule": schedule})
    assert_equal_steps(joined(found), steps_of_unlike_batches(kind, {}))


def unit_gradients():
    """Four micro-batches three times, each of which has a gradient of 1 for each of its elements."""
    layout = lay_out(make_network("untied", num_layers=2), Plan(pipeline=2), Group())
    weight = layout.parameters()["norm.weight" if layout.rank else "embedding.weight"]
    made = [{"inputs": torch.zeros(1, 1, dtype=torch.long)}] * 4

    def loss(network, batch):
        return (network.hidden(batch["inputs"]) * 0).sum() + weight.flatten()[0], 1, None

    for _ in range(3):
        layout.forward_backward(made, loss, 12.0)
    return float(weight.grad.flatten()[0])


def test_gradients_are_scaled_once(two_ranks):
    assert two_ranks(unit_gradients)[1] == pytest.approx(1.0)


# -- what cannot be ------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Facts:
    objective: str = "causal_lm"
    optimizer: str = "adamw"
    batch_size: int = 1
    sequence_length: int = 8
    accumulation: int = 4
    packing: str = "concatenated"


@pytest.mark.parametrize(
    ("preset", "plan", "facts", "reason"),
    [
        ("gpt2", {"pipeline": 8}, {"accumulation": 8}, "8 stages needs 8 blocks; this network has 4"),
        ("gpt2", {"pipeline": 4, "schedule": "interleaved"}, {}, "8 stages"),
        (
            "gpt2",
            {"pipeline": 4},
            {"accumulation": 3},
            "at least 4 micro-batches in a step; accumulation is 3",
        ),
        ("gpt2", {"pipeline": 2, "schedule": "zero_bubble"}, {"accumulation": 5}, "equal rounds"),
        ("gpt2", {"pipeline": 2}, {"objective": "kto"}, "more than once"),
        ("gpt2", {"pipeline": 2, "zero": 3, "data": 2, "schedule": "zero_bubble"}, {}, "given away"),
        ("gpt2", {"pipeline": 2}, {"objective": "ppo"}, "samples itself"),
        ("rwkv", {"pipeline": 2}, {}, "divides decoders, encoders and encoder-decoders"),
        ("albert", {"pipeline": 2}, {"objective": "masked_lm"}, "share their blocks"),
        ("mixtral", {"pipeline": 2}, {}, "routers of all layers"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(preset, plan, facts, reason):
    shape = {"vocab_size": 64, "hidden_size": 32, "num_layers": 4}
    others = {"rwkv": {}, "mixtral": {"num_heads": 4, "router_loss_weight": 0.1}}
    config = make_config(preset, **shape, **others.get(preset, {"num_heads": 4}))
    sized = Plan(**plan).sized(Plan(**plan).model_ranks * (plan.get("data") or 1))
    with pytest.raises(UserError, match=reason) as refused:
        sized.check(config, Facts(**facts))
    assert refused.value.hint


def test_a_schedule_that_takes_them_is_not_refused():
    config = make_config("gpt2", vocab_size=64, hidden_size=32, num_layers=4, num_heads=4)
    Plan(pipeline=4, schedule="gpipe", data=1).check(config, Facts(accumulation=3))
    Plan(pipeline=4, schedule="zero_bubble", data=1).check(config, Facts(accumulation=10))


def read_twice():
    layout = lay_out(make_network("decoder"), Plan(pipeline=2), Group())
    objective = make_objective("decoder")

    def loss(network, batch):
        first, count = objective.loss(network, batch)
        return first + objective.loss(network, batch)[0], count, None

    layout.forward_backward([make_batch("decoder", 0)] * 2, loss, 1.0)


def test_an_objective_that_reads_twice_is_named_by_the_stage_that_finds_out(two_ranks):
    with pytest.raises(RankError, match="UserError: This objective reads the network more than once"):
        two_ranks(read_twice)


# -- large meshes, without processes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plan",
    [
        {"pipeline": 2, "tensor": 2, "data": 2, "zero": 3},
        {"pipeline": 4, "tensor": 2, "schedule": "interleaved"},
        {"pipeline": 4, "tensor": 4, "sequence": True, "zero": 2},
        {"pipeline": 2, "context": 2, "tensor": 2, "schedule": "zero_bubble"},
    ],
)
@pytest.mark.parametrize("ranks", [8, 64])
def test_every_rank_of_a_large_mesh_builds_its_part(plan, ranks):
    if ranks % Plan(**plan).model_ranks:
        pytest.skip("not that many ranks")
    plan = {**plan, "data": ranks // Plan(**plan).model_ranks}
    for kind in ("decoder", "encoder_decoder"):
        whole = sum(p.numel() for p in make_network(kind, num_layers=8, num_heads=8).parameters())
        held: dict[str, int] = {}
        for rank in range(0, ranks, ranks // plan["pipeline"]):
            dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
            try:
                layout = lay_out(make_network(kind, num_layers=8, num_heads=8), Plan(**plan), Group())
                held |= {name: p.numel() for name, p in layout.parameters().items()}
            finally:
                dist.destroy_process_group()
        assert sum(held.values()) == whole


# -- as one ----------------------------------------------------------------------------------------------------------


def whole_and_assigned(kind):
    layout = lay_out(make_network(kind, num_layers=4), Plan(pipeline=2), Group())
    names = list(make_network(kind, num_layers=4).state_dict())
    with layout.whole_network() as before:
        first = None if before is None else {name: x.clone() for name, x in before.state_dict().items()}
    for name in names:
        layout.assign(name, torch.full(layout.division.shapes[name], float(len(name))))
    layout.publish()
    assigned = {name: layout.whole(name) for name in names}
    evaluated = layout.evaluate(
        make_batch(kind, 3), lambda net, b: (*make_objective(kind).loss(net, b), None)
    )
    return first, assigned, evaluated


@pytest.mark.parametrize("kind", SHAPES)
def test_whole_parameters_are_assigned_and_returned_and_a_batch_is_evaluated(two_ranks, kind):
    (first, assigned, evaluated), (nothing, missing, also) = two_ranks(whole_and_assigned, kind)
    network = make_network(kind, num_layers=4)
    assert nothing is None and set(missing.values()) == {None}
    assert first.keys() == assigned.keys() == network.state_dict().keys()
    for name, weight in network.state_dict().items():
        assert torch.equal(first[name], weight)
        assert torch.equal(assigned[name], torch.full_like(weight, len(name)))
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.fill_(len(name))
        loss, count = make_objective(kind).loss(network, make_batch(kind, 3))
    assert evaluated == also == (pytest.approx(float(loss), rel=1e-6), count)
