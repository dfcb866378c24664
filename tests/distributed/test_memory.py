"""The memory that a plan is said to need: the papers' figures, and what is measured."""

from __future__ import annotations

import pytest
import torch

from nbllm.core.errors import UserError
from nbllm.distributed import OneProcess, OneRank, Plan, checkpoint_activations, held_bytes
from nbllm.distributed.memory import (
    BETWEEN,
    OPTIMIZER_STATES,
    Workload,
    micro_batches_held,
    state_bytes,
    textbook_activation_bytes,
    zero_bytes,
)
from nbllm.distributed.placement import Parameter
from nbllm.models import ModelConfig, build, make_config
from nbllm.objectives.causal_lm import CausalLM
from nbllm.training.optim import Optimizer
from nbllm.training.optimizers import OPTIMIZERS
from tests.distributed.measuring import peak_above, storage_bytes

SMALL = {"num_layers": 4, "hidden_size": 256, "num_heads": 4, "max_positions": 512}


@pytest.mark.parametrize(("zero", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_figure_1_of_the_paper_on_zero(zero, gigabytes):
    assert zero_bytes(7.5e9, 64, zero) / 1e9 == pytest.approx(gigabytes, abs=0.05)


@pytest.mark.parametrize(("selective", "gibibytes"), [(False, 2.67), (True, 0.80)])
def test_activations_of_a_layer_of_gpt_3_as_korthikanti_counts_them(selective, gibibytes):
    config = make_config("gpt2", hidden_size=12288, num_heads=96, num_layers=96, max_positions=2048)
    found = textbook_activation_bytes(config, 1, 2048, selective=selective)
    assert found / 2**30 == pytest.approx(gibibytes, abs=0.005)
    assert textbook_activation_bytes(config, 1, 2048, tensor=8, selective=selective) == found / 8


def test_schedules_hold_as_many_micro_batches_as_come_before_the_first_backward_pass():
    def held(schedule, stage):
        return micro_batches_held(Plan(data=1, pipeline=4, schedule=schedule), 8, stage)

    assert [held("gpipe", stage) for stage in range(4)] == [8, 8, 8, 8]
    assert [held("1f1b", stage) for stage in range(4)] == [4, 3, 2, 1]
    # Megatron: 2 (p - 1 - rank) + (v - 1) p forward passes of a chunk warm up, and one more is computed.
    assert [held("interleaved", stage) for stage in range(4)] == [5.5, 4.5, 3.5, 2.5]


def measured(layout, vocab_size, batch_size, length, accumulation):
    """The bytes held before a step by this package's own optimizer, and at most within it."""
    optimizer, objective = Optimizer(layout, OPTIMIZERS["adamw"]), CausalLM()
    ids = torch.randint(0, vocab_size, (batch_size, length + 1), generator=torch.Generator().manual_seed(0))
    batch = {"inputs": ids[:, :-1].contiguous(), "targets": ids[:, 1:].contiguous()}

    def step():
        layout.forward_backward(
            [batch] * accumulation, lambda network, given: (*objective.loss(network, given), None), 1.0
        )
        optimizer.clip(1.0)
        optimizer.configure(lr=1e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
        optimizer.step()
        optimizer.zero_grad()

    step()
    # Of ZeRO-1 the masters are rows of the parameters, in their memory; of tied weights there is one.
    held = storage_bytes(
        [*layout.network.parameters(), *optimizer.masters.values(), *optimizer.state().values()]
    )
    return held, held + peak_above(step)


def one_process(family, precision, batch_size, length, accumulation, **changes):
    """What a small model takes in one process: its shape, the bytes held before a step, and at most within it."""
    config = make_config(family, **SMALL | changes)
    layout = OneProcess(build(config), Plan(data=1), OneRank(), dtype=getattr(torch, precision))
    return config, *measured(layout, config.vocab_size, batch_size, length, accumulation)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("family", "batch_size", "length", "accumulation", "vocab_size"),
    [
        ("gpt2", 8, 256, 1, 4096),  # activations
        ("llama", 4, 256, 2, 4096),
        ("llama", 1, 64, 1, 4096),  # parameters
        ("gpt2", 1, 64, 2, 4096),
        ("gpt2", 2, 512, 1, 512),  # attention weights are not kept
        ("llama", 2, 128, 1, 32000),  # logits
    ],
)
def test_one_process_needs_what_is_said(precision, family, batch_size, length, accumulation, vocab_size):
    config, before, most = one_process(
        family, precision, batch_size, length, accumulation, vocab_size=vocab_size
    )
    report = Plan(data=1).explain(
        config, 1, batch_size=batch_size, sequence_length=length, accumulation=accumulation, precision=precision,
        device="cpu",
    )  # fmt: skip
    assert report.largest.at(BETWEEN) == pytest.approx(before, rel=0.01)
    assert report.peak == pytest.approx(most, rel=0.15)
    assert report.peak - report.largest.at(BETWEEN) == pytest.approx(most - before, rel=0.15)


OURS = [name for name in OPTIMIZERS if OPTIMIZERS[name].__module__.startswith("nbllm.")]  # not those of tests


@pytest.mark.parametrize("name", OURS)
def test_the_state_of_every_optimizer_is_what_it_holds(name):
    network = build(make_config("llama", vocab_size=128, num_layers=2, hidden_size=128, num_heads=4))
    optimizer = Optimizer(OneProcess(network, Plan(data=1), OneRank()), OPTIMIZERS[name])
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    settings = {setting.name: setting.default for setting in OPTIMIZERS[name].settings}
    optimizer.configure(lr=1e-3, **settings)
    optimizer.step()
    held = sum(
        tensor.nbytes for key, tensor in optimizer.state_tensors().items() if not key.startswith("step.")
    )
    parameters = tuple(Parameter(path, tuple(each.shape)) for path, each in network.named_parameters())
    assert state_bytes(parameters, optimizer=name, tensor=1, shards=1) == held


@pytest.mark.parametrize("choice", ["full", "selective", 2])
def test_checkpointed_blocks_keep_what_is_said(choice):
    config = make_config("llama", **SMALL | {"vocab_size": 512})
    network = build(config)
    network.attention_backend = "sdpa"  # as on a GPU: attention's own weights are not kept
    checkpoint_activations(network, choice)
    plan = Plan(data=1, activation_checkpointing=choice)
    held = held_bytes(lambda: network.hidden(torch.zeros(4, 256, dtype=torch.long)))
    report = plan.explain(config, 1, batch_size=4, sequence_length=256, precision="float32")
    assert report.largest.parts["activations"][1] == pytest.approx(held, rel=0.15)


def test_every_optimizer_is_known():
    assert set(OPTIMIZER_STATES) == set(OURS)


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"batch_size": 0}, "batch_size must be at least 1"), ({"optimizer": "adamm"}, "Did you mean 'adamw'")],
)
def test_what_makes_no_sense_is_refused(settings, match):
    with pytest.raises(UserError, match=match):
        Workload(**{"batch_size": 1, "sequence_length": 1} | settings)


def test_memory_does_not_depend_on_names_of_families():
    config = ModelConfig(family="own", vocab_size=512, hidden_size=64, num_layers=2, num_heads=4)
    assert Plan(data=1).explain(config, 1).peak > 16 * config.costs().parameters


def measured_on_a_rank(settings, precision, accumulation):
    """What a rank holds between two steps, and at most within one, of a model whose parameters outweigh its batch."""
    from nbllm.distributed import lay_out
    from tests.distributed.steps import Group

    config = make_config("gpt2", **SMALL | {"vocab_size": 2048})
    layout = lay_out(build(config), Plan(**settings), Group(), dtype=getattr(torch, precision))
    return measured(layout, config.vocab_size, 2, 128, accumulation)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("settings", "accumulation"),
    [
        ({"data": 2}, 1), ({"data": 2, "zero": 1}, 2), ({"data": 2, "zero": 2}, 1), ({"data": 2, "zero": 3}, 2),
        ({"data": 1, "tensor": 2, "sequence": True}, 1), ({"data": 1, "pipeline": 2}, 2),
        ({"data": 1, "context": 2}, 1), ({"data": 2, "activation_checkpointing": "full"}, 1),
    ],
    ids=str,
)  # fmt: skip
def test_two_ranks_need_what_is_said(two_ranks, settings, accumulation, precision):
    measured = two_ranks(measured_on_a_rank, settings, precision, accumulation)
    config = make_config("gpt2", **SMALL | {"vocab_size": 2048})
    report = Plan(**settings).explain(
        config,
        2,
        batch_size=2,
        sequence_length=128,
        accumulation=accumulation,
        precision=precision,
        device="cpu",
    )
    for rank, (held, most) in enumerate(measured):
        memory = report.memory[rank if len(report.memory) > 1 else 0]
        assert memory.at(BETWEEN) == pytest.approx(held, rel=0.05)
        assert memory.peak == pytest.approx(most, rel=0.15)
