"""One process whose weights, gradients and optimizer state lie in the CPU's memory, beside plain training.

Where there is no GPU, "the device" is a second place in the CPU's memory: the same copies are made.
"""

from __future__ import annotations

import itertools

import pytest
import torch

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.distributed import OneRank, Plan
from nbllm.distributed.apply import lay_out
from nbllm.distributed.cpu_offload import BlockStream, BlockWeights, Copies
from nbllm.distributed.memory import Workload
from nbllm.models import build, make_config
from nbllm.objectives import OBJECTIVES
from nbllm.training.diagnosis import first_bad_module
from nbllm.training.digests import state_digest
from nbllm.training.optim import Optimizer
from nbllm.training.optimizers import OPTIMIZERS
from tests.distributed.test_offload import texts as texts, tokenizer as tokenizer

SMALL = {"vocab_size": 320, "num_layers": 4, "hidden_size": 64, "num_heads": 4, "max_positions": 64}
RUN = {"batch_size": 2, "sequence_length": 32, "sample_tokens": 4, "clip": 0.5, "num_threads": 1}


@pytest.fixture
def on_cpu(monkeypatch):
    """Let runs of the CPU offload to its own memory."""
    monkeypatch.setattr("nbllm.training.start.check_device", lambda plan, device: None)


def make_layout(family, offload, dtype=torch.float32, checkpointing="none", **changes):
    left_out = {"t5": "max_positions", "rwkv": "num_heads"}.get(family)
    shape = {name: value for name, value in SMALL.items() if name != left_out}
    plan = Plan(offload=offload, activation_checkpointing=checkpointing)
    return lay_out(build(make_config(family, **shape | changes), seed=1), plan, OneRank(), dtype=dtype)


def causal_batches(number, seed=0):
    ids = torch.randint(SMALL["vocab_size"], (number, 2, 33), generator=torch.Generator().manual_seed(seed))
    return [{"inputs": each[:, :-1].contiguous(), "targets": each[:, 1:].contiguous()} for each in ids]


def loss(network, batch):
    return *OBJECTIVES["causal_lm"]().loss(network, batch), None


def train(layout, kind, steps=3, accumulation=2):
    """Return losses, norms, gradients of the last step and weights."""
    optimizer = Optimizer(layout, OPTIMIZERS[kind])
    layout.freeze({"blocks.1.feed_forward.up.weight"})
    settings = {setting.name: setting.default for setting in OPTIMIZERS[kind].settings}
    seen = []
    for step in range(steps):
        seen.append(layout.evaluate(causal_batches(1)[0], loss))
        seen.append(layout.forward_backward(causal_batches(accumulation, seed=step), loss, 100.0))
        gradients = {name: p.grad.clone() for name, p in layout.parameters().items() if p.grad is not None}
        seen.append(optimizer.clip(0.1))
        optimizer.configure(lr=1e-2, **settings)
        optimizer.step()
        optimizer.zero_grad()
    with layout.whole_network(in_float32=True) as network:
        weights = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    return seen, gradients, weights


@pytest.mark.parametrize(
    ("family", "dtype", "kind", "checkpointing"),
    [
        ("gpt2", torch.float32, "adamw", "none"),
        ("gpt2", torch.bfloat16, "adamw_8bit", "full"),
        ("llama", torch.bfloat16, "adamw", "none"),
        ("llama", torch.float32, "adamw_8bit", "selective"),
        ("gemma3", torch.float32, "muon", "none"),
        ("rwkv", torch.float32, "adamw", "none"),
    ],
)
def test_every_step_equals_the_plain_one_bit_for_bit(family, dtype, kind, checkpointing):
    plain = train(make_layout(family, "none", dtype), kind)
    offloaded = train(make_layout(family, "cpu", dtype, checkpointing), kind)
    assert offloaded[0] == plain[0]
    for ours, expected in zip(offloaded[1:], plain[1:], strict=True):
        assert ours.keys() == expected.keys() and len(ours) > 0
        for name, value in expected.items():
            assert torch.equal(ours[name], value), name


def test_shared_blocks_and_encoders_are_streamed():
    layouts = [make_layout("albert", offload, num_layer_groups=2) for offload in ("none", "cpu")]
    batch = causal_batches(1)[0]

    def encoded(network, batch):
        return network.hidden(batch["inputs"]).float().square().sum(), 1.0, None

    for layout in layouts:
        layout.forward_backward([batch], encoded, 1.0)
    plain, offloaded = ({n: p.grad for n, p in each.parameters().items()} for each in layouts)
    assert len(layouts[1].masters.blocks) == 2
    for name, expected in plain.items():
        assert expected is offloaded[name] is None or torch.equal(expected, offloaded[name]), name


@pytest.fixture
def held(monkeypatch):
    """Record which blocks are on the device whenever one has been brought there or given back."""
    record: list[list[BlockWeights]] = [[]]

    def fetch(self):
        record.append([*record[-1], self])
        return original_fetch(self)

    def release(self):
        record.append([each for each in record[-1] if each is not self])
        original_release(self)

    original_fetch, original_release = BlockWeights.fetch, BlockWeights.release
    monkeypatch.setattr(BlockWeights, "fetch", fetch)
    monkeypatch.setattr(BlockWeights, "release", release)
    return record


def bytes_on_device(layout):
    storages = {each.untyped_storage()._cdata: each.untyped_storage() for each in layout.network.parameters()}
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize(("family", "blocks"), [("gpt2", 4), ("t5", 8)])
def test_the_device_holds_two_blocks_at_most(held, family, blocks):
    layout = make_layout(family, "cpu", torch.bfloat16)
    del held[1:]
    batch = causal_batches(1)[0]
    if family == "t5":
        batch |= {"decoder_inputs": batch["inputs"]}

    def summed(network, batch):
        given = [batch["inputs"], batch["inputs"]][: 1 + (family == "t5")]
        return network.hidden(*given).float().square().sum(), 1.0, None

    layout.forward_backward([batch, batch], summed, 1.0)
    assert max(map(len, held)) == 2
    # From the first block to the last, and back: of a pass, each block but two is brought twice.
    fetched = sum(len(after) > len(before) for before, after in itertools.pairwise(held))
    assert fetched == 2 * (2 * blocks - 2) - 2
    layout.publish()
    assert held[-1] == [] and all(p.isnan().all() for p in layout.masters.blocks[0].parameters())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_the_device_holds_is_what_is_said(monkeypatch, precision, family):
    layout = make_layout(family, "cpu", getattr(torch, precision))
    weights, gradients, original = [0], [0], BlockStream._fetch

    def fetch(self, number):
        original(self, number)
        weights.append(bytes_on_device(layout))

    def send(name, gradient):
        original_send(name, gradient)
        gradients.append(sum(each.nbytes for sent in layout._returned._sent for _, each, *_ in sent))

    original_send = layout._returned.send
    monkeypatch.setattr(layout._returned, "send", send)
    monkeypatch.setattr(BlockStream, "_fetch", fetch)
    layout.forward_backward(causal_batches(1), loss, 1.0)
    config = make_config(family, **SMALL)
    report = Plan(offload="cpu").explain(config, 1, batch_size=2, sequence_length=32, precision=precision)
    parts = {name: values[-1] for name, values in report.largest.parts.items()}
    placeholders = 4 * 4  # an element of each block
    assert parts["gathered parameters"] == pytest.approx(max(weights), abs=placeholders)
    dense = layout.network.embedding.weight.nbytes if config.tie_embeddings else 0
    assert parts["gradients of a unit"] - dense == pytest.approx(max(gradients), rel=0.02)
    layout.publish()
    kept = sum(p.nbytes for p in layout.parameters().values())
    rounded = 0 if precision == "float32" else kept / 2
    assert report.largest.offloaded == pytest.approx(4 * kept + rounded)
    assert report.largest.at("between steps") == pytest.approx(bytes_on_device(layout), abs=placeholders)


class LateCopies(Copies):
    """Copies that are made when they are waited for, and not before: the worst that a GPU may do."""

    def start(self, copies):
        copies = list(copies)
        for target, _ in copies:
            target.fill_(torch.nan)
        return Late(copies)


class Late:
    def __init__(self, copies):
        self.copies = copies

    def wait(self):
        for target, source in self.copies:
            target.copy_(source)
        self.copies = []

    synchronize = wait


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_computed_before_its_copy_is_complete(monkeypatch, dtype):
    expected = train(make_layout("gpt2", "none", dtype), "adamw")[0]
    monkeypatch.setattr("nbllm.distributed.cpu_offload.Copies", LateCopies)
    assert train(make_layout("gpt2", "cpu", dtype), "adamw")[0] == expected


def test_gradients_wait_for_one_block_at_most(monkeypatch):
    """Those of a block are added up when the one after the next begins."""
    layout = make_layout("gpt2", "cpu")
    returned, waiting = layout._returned, []
    original = returned.next_block

    def next_block():
        original()
        waiting.append(
            {name.split(".")[1] for sent in returned._sent for name, *_ in sent if "blocks" in name}
        )

    monkeypatch.setattr(returned, "next_block", next_block)
    layout.forward_backward(causal_batches(1), loss, 1.0)
    assert waiting == [set(), {"3"}, {"2"}, {"1"}]
    assert not any(returned._sent)


def test_a_pass_that_is_broken_off_leaves_the_layout_usable():
    layout, plain = make_layout("llama", "cpu"), make_layout("llama", "none")

    def broken(network, batch):
        network.hidden(batch["inputs"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        layout.forward_backward(causal_batches(1), broken, 1.0)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in layout.masters.blocks)
    assert layout.forward_backward(causal_batches(1), loss, 1.0) == plain.forward_backward(
        causal_batches(1), loss, 1.0
    )


def test_a_weight_that_is_not_finite_is_named():
    layout = make_layout("llama", "cpu")
    name = "blocks.2.feed_forward.up.weight"
    layout.assign(name, torch.full(layout.parameters()[name].shape, torch.inf))
    layout.publish()
    with layout.whole_network() as network:
        objective, batch = OBJECTIVES["causal_lm"](), causal_batches(1)[0]
        assert first_bad_module(network, objective, batch, layout.parameters()) == f"the weight {name}"
        assert first_bad_module(network, objective, batch, {}).startswith("the module blocks.2")


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gpt2", {"precision": "float32"}),
        ("llama", {"precision": "bfloat16", "accumulation": 2}),
        ("t5", {"precision": "float32", "objective": "span_corruption", "optimizer": "adamw_8bit"}),
    ],
)
def test_a_run_equals_the_plain_run_bit_for_bit(on_cpu, texts, tokenizer, tmp_path, family, settings):
    shape = {name: value for name, value in SMALL.items() if family != "t5" or name != "max_positions"}
    digests, samples, losses = [], [], []
    for offload in ("none", "cpu"):
        lm = nb.LM.new(family, tokenizer=tokenizer, seed=1, **{**shape, "vocab_size": len(tokenizer)})
        run = nb.train(
            lm, (texts, texts.select(range(2))), folder=tmp_path, name=offload, steps=4, plan=nb.Plan(offload=offload),
            device="cpu", **{**RUN, **settings},
        )  # fmt: skip
        run.wait(progress=False)
        digests.append(state_digest(run.checkpoints[-1].path))
        samples.append([event["text"] for event in run.events() if event["kind"] == "sample"])
        losses.append([event["loss"] for event in run.events() if event["kind"] in ("step", "evaluation")])
        stored = nb.load(run.checkpoints[-1].path).model.parameters()
        for held, expected in zip(lm.model.parameters(), stored, strict=True):
            assert torch.equal(held, expected)
    assert losses[0] == losses[1] and len(losses[0]) > 4
    assert digests[0] == digests[1] and samples[0] == samples[1]


def test_a_run_goes_on_from_a_checkpoint(on_cpu, texts, tokenizer, tmp_path):
    lm = nb.LM.new("llama", tokenizer=tokenizer, seed=1, **{**SMALL, "vocab_size": len(tokenizer)})
    run = nb.train(
        lm, texts, folder=tmp_path, name="run", steps=6, checkpoint_interval=3, plan=nb.Plan(offload="cpu"),
        sample_interval=0, device="cpu", **RUN,
    )  # fmt: skip
    run.wait(progress=False)
    fork = run.fork("fork", step=3).wait(progress=False)
    assert fork.record["plan"]["offload"] == "cpu"
    assert state_digest(fork.checkpoints[-1].path) == state_digest(run.checkpoints[-1].path)


@pytest.mark.parametrize(
    ("plan", "work", "match"),
    [
        ({"compile": "whole"}, {}, "one program of all blocks"),
        ({}, {"objective": "grpo"}, "samples answers"),
    ],
)
def test_what_needs_all_blocks_at_once_is_refused(plan, work, match):
    config = make_config("llama", **SMALL)
    facts = Workload(batch_size=1, sequence_length=8, **work)
    with pytest.raises(UserError, match=match) as raised:
        Plan(offload="cpu", **plan).sized(1).check(config, facts)
    assert raised.value.hint
