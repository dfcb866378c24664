"""A network divided over a pipeline computes what one process computes."""

from __future__ import annotations

import pytest
import torch

from nbllm.distributed import Plan, lay_out
from tests.distributed.steps import (
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
