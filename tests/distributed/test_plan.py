"""A plan is checked before anything starts: the reason and what to change are named."""

from __future__ import annotations

import json

import pytest

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.distributed.mesh import axis_sizes
from nbllm.models import make_config
from nbllm.training import TrainConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"zero": 4}, "must be 0, 1, 2 or 3"),
        ({"tensor": 0}, "greater than 0"),
        ({"data": 0}, "greater than 0"),
        ({"tensor": 2.5}, "whole number"),
        ({"schedule": "1f2b"}, "'1f1b'"),
        ({"precision": "fp16"}, "float16"),
        ({"sequence": True}, "tensor=2"),
        ({"zero": 1, "shard": 2}, "zero=2"),
        ({"tensor": 2, "precision": "float8"}, "bfloat16"),
        ({"activation_checkpointing": "some"}, "'none'"),
        ({"activation_checkpointing": True}, "whole number"),
        ({"activation_checkpointing": 0}, "greater than 0"),
        ({"offload": "nvme"}, "'disk'"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        nb.Plan(**settings)


def test_data_ranks_are_what_the_other_axes_leave():
    assert nb.Plan(tensor=2, pipeline=2).sized(8).data == 2
    assert nb.Plan(data=2).sized(2).data == 2
    with pytest.raises(UserError, match="multiple of 4 processes") as error:
        nb.Plan(tensor=2, pipeline=2).sized(6)
    assert "tensor=2 x pipeline=2" in str(error.value) and "Launch 8" in str(error.value)


def test_a_plan_for_another_number_of_processes_says_how_many_it_needs():
    with pytest.raises(UserError, match="needs 4 processes; there are 2"):
        nb.Plan(data=4).sized(2)
    with pytest.raises(UserError, match="needs 2 processes; there is one"):
        nb.Plan(data=2).sized(1)
    with pytest.raises(UserError, match="Set shard to one of 1, 2, 3, 6"):
        nb.Plan(zero=3, shard=4).sized(6)


def test_axes_go_from_outer_to_inner():
    plan = nb.Plan(zero=3, shard=2, tensor=2, pipeline=2).sized(16)
    assert axis_sizes(plan) == {"pipeline": 2, "replicate": 2, "shard": 2, "context": 1, "tensor": 2}
    assert axis_sizes(nb.Plan().sized(4))["replicate"] == 4
    assert axis_sizes(nb.Plan(zero=1).sized(4))["shard"] == 4


def test_a_plan_is_the_same_after_json():
    plan = nb.Plan(data=2, zero=3, activation_checkpointing=2, precision="float16")
    assert nb.Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_an_objective_with_steps_of_its_own_is_refused():
    model = make_config("gpt2", vocab_size=8, hidden_size=8, num_layers=1, num_heads=1)
    plan = nb.Plan().sized(2)
    plan.check(model, TrainConfig())
    with pytest.raises(UserError, match="one process only"):
        plan.check(model, TrainConfig(objective="grpo"))
