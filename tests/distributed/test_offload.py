"""Training whose weights, gradients and optimizer state lie on disk, beside training in memory: the same bits."""

from __future__ import annotations

import collections
import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.distributed import OneRank, Plan
from nbllm.distributed.layout import OneProcess
from nbllm.distributed.offload import DiskOffload
from nbllm.distributed.scratch import Scratch
from nbllm.training.digests import state_digest
from nbllm.training.launcher import Launcher
from nbllm.training.optimizers import OPTIMIZERS

SHAPE = {"num_layers": 2, "hidden_size": 256, "num_heads": 4, "max_positions": 64, "seed": 1}
RUN = {"batch_size": 2, "sequence_length": 32, "sample_tokens": 4, "clip": 0.5, "num_threads": 2}


@pytest.fixture(scope="module")
def texts():
    return nb.data.load("pydocs").select(range(8))


@pytest.fixture(scope="module")
def tokenizer(texts):
    tokenizer = nb.data.train_tokenizer(texts, vocab_size=320)
    nb.objectives.add_tokens(tokenizer, "span_corruption")
    return tokenizer


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gpt2", {"precision": "float32"}),
        ("llama", {"precision": "bfloat16", "accumulation": 2}),
        ("llama", {"precision": "float32", "accumulation": 2, "optimizer": "adamw_8bit"}),
        ("t5", {"precision": "float32", "objective": "span_corruption", "optimizer": "lion", "lr": 1e-4}),
    ],
)
def test_a_run_equals_the_plain_run_bit_for_bit(texts, tokenizer, tmp_path, family, settings):
    shape = {name: value for name, value in SHAPE.items() if family != "t5" or name != "max_positions"}
    digests = []
    for offload in ("none", "disk"):
        lm = nb.LM.new(family, tokenizer=tokenizer, **shape)
        run = nb.train(
            lm, (texts, texts.select(range(2))), folder=tmp_path, name=offload, steps=4, plan=nb.Plan(offload=offload),
            **{**RUN, **settings},
        )  # fmt: skip
        run.wait(progress=False)
        digests.append(state_digest(run.checkpoints[-1].path))
        assert not list(run.path.glob("offload-*"))
    assert digests[0] == digests[1]


def test_a_run_goes_on_from_a_checkpoint(texts, tokenizer, tmp_path):
    lm = nb.LM.new("llama", tokenizer=tokenizer, **SHAPE)
    run = nb.train(
        lm, texts, folder=tmp_path, name="run", steps=6, checkpoint_interval=3, plan=nb.Plan(offload="disk"),
        sample_interval=0, **RUN,
    )  # fmt: skip
    run.wait(progress=False)
    fork = run.fork("fork", step=3).wait(progress=False)
    assert fork.record["plan"]["offload"] == "disk"
    assert state_digest(fork.checkpoints[-1].path) == state_digest(run.checkpoints[-1].path)


class Model(nn.Module):
    """A table, blocks and a head, with the names of a network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(64, 96)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(96, 96), nn.LayerNorm(96)) for _ in range(3))
        self.head = nn.Linear(96, 64)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = x + block(x).relu()
        return self.head(x)


def loss(network, tokens):
    logits = network(tokens)[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"), 28.0, None


@pytest.mark.parametrize("kind", [name for name in OPTIMIZERS if name != "test_sgd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_optimizer_takes_the_same_steps(tmp_path, monkeypatch, kind, dtype):
    monkeypatch.setattr("nbllm.distributed.scratch._SMALL", 0)
    results = []
    for layout in (
        OneProcess(Model(), Plan(data=1), OneRank(), dtype=dtype),
        DiskOffload(Model(), Plan(data=1), OneRank(), dtype=dtype, scratch=Scratch(tmp_path)),
    ):
        optimizer = OPTIMIZERS[kind](layout.parameters())
        layout.freeze({"head.bias"})
        for step in range(3):
            batches = torch.randint(64, (2, 4, 8), generator=torch.Generator().manual_seed(step))
            layout.forward_backward(list(batches), loss, 56.0)
            norm = layout.norm([p.grad for p in layout.parameters().values() if p.grad is not None])
            settings = {setting.name: setting.default for setting in OPTIMIZERS[kind].settings}
            optimizer.configure(lr=1e-2, **settings)
            layout.step(optimizer)
            layout.drop_gradients()
        network = {name: parameter.detach() for name, parameter in layout.network.named_parameters()}
        results.append((norm, network, {n: p.detach() for n, p in layout.parameters().items()}))
    (norm, network, masters), (norm_on_disk, network_on_disk, masters_on_disk) = results
    assert norm == norm_on_disk
    for name, value in masters.items():
        assert torch.equal(value, masters_on_disk[name]) and torch.equal(network[name], network_on_disk[name])


def test_hooks_are_on_the_blocks_during_a_pass_alone(tmp_path):
    layout = DiskOffload(Model(), Plan(data=1), OneRank(), dtype=torch.float32, scratch=Scratch(tmp_path))
    layout.forward_backward([torch.zeros(4, 8, dtype=torch.int64)], loss, 28.0)
    assert not any(block._forward_pre_hooks for block in layout.network.blocks)


def test_what_cannot_be_offloaded_is_refused_before_a_run_is_made(texts, tokenizer, tmp_path, monkeypatch):
    lm = nb.LM.new("gpt2", tokenizer=tokenizer, **SHAPE)
    folder = tmp_path / "runs"
    with pytest.raises(UserError, match="shares out no parameters"):
        where = nb.Launch(processes=2)
        nb.train(lm, texts, folder=folder, plan=nb.Plan(offload="cpu"), where=where, **RUN)
    for plan, where in (
        (nb.Plan(offload="cpu", zero=3), nb.Launch(processes=2)),
        (nb.Plan(offload="cpu"), "thread"),
    ):
        with pytest.raises(UserError, match="this run is on the CPU"):
            nb.train(lm, texts, folder=folder, device="cpu", plan=plan, where=where, **RUN)
    with pytest.raises(UserError, match="for one process, and the plan has 2"):
        plan = nb.Plan(offload="disk")
        nb.train(lm, texts, folder=folder, where=nb.Launch(processes=2), plan=plan, **RUN)
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, 1000))
    with pytest.raises(UserError, match=r"needs 2\d\.?\d* MB on the disk.* 1 kB are free"):
        nb.train(lm, texts, folder=folder, plan=nb.Plan(offload="disk"), precision="float32", **RUN)
    assert not list(folder.iterdir())


TRAIN_WITHIN = """
import pathlib, resource, sys
import numba, scipy.linalg, tokenizers  # what a trainer loads at its first step
from transformers import PreTrainedTokenizerFast
from nbllm.training.trainer import Trainer

def data_of_the_process():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))

path, limit, is_more = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "more"
if limit:
    limit += data_of_the_process() if is_more else 0
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
Trainer(pathlib.Path(path), where="process").run()
"""


def make_runs(monkeypatch, lm, texts, folder):
    """Make a run with offload and one without, and start neither."""
    monkeypatch.setattr(Launcher, "start", lambda self, path: path)
    return {
        offload: nb.train(
            lm, texts, folder=folder, name=offload, steps=2, batch_size=1, sequence_length=16,
            precision="float32", sample_interval=0, plan=nb.Plan(offload=offload), num_threads=2,
        )
        for offload in ("disk", "none")
    }  # fmt: skip


def train_within(path, limit, *, more=False):
    """Train a run in a process whose data is limited; return how it ended."""
    command = [sys.executable, "-c", TRAIN_WITHIN, str(path), str(limit), "more" if more else "in all"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = "".join(file.read_text() for file in (path / "events").iterdir()).splitlines()
    return ended, next((event for event in map(json.loads, lines) if event["kind"] == "end"), {})


def test_a_model_that_does_not_fit_in_memory_is_trained(texts, tokenizer, tmp_path, monkeypatch):
    """43M parameters: 171 MB of weights, as much of gradients, 342 MB of state; the process may add 320 MB."""
    shape = {**SHAPE, "num_layers": 6, "hidden_size": 768, "num_heads": 12}
    lm = nb.LM.new("gpt2", tokenizer=tokenizer, **shape)
    assert 8 * lm.num_parameters > 320e6
    runs = make_runs(monkeypatch, lm, texts, tmp_path)
    trained, end = train_within(runs["disk"], 320_000_000, more=True)
    assert trained.returncode == 0 and end.get("state") == "finished", trained.stderr[-2000:]
    plain, expected = train_within(runs["none"], 0)
    assert plain.returncode == 0 and end["digest"] == expected["digest"] is not None


@pytest.mark.slow
def test_a_model_of_three_gigabytes_of_state_is_trained_with_one_and_a_half(
    texts, tokenizer, tmp_path, monkeypatch
):
    """404M parameters: 3.2 GB for AdamW's state alone, 1.6 GB for the weights and as much for the gradients."""
    shape = {**SHAPE, "num_layers": 32, "hidden_size": 1024, "num_heads": 16}
    lm = nb.LM.new("gpt2", tokenizer=tokenizer, **shape)
    assert 8 * lm.num_parameters > 3e9
    runs = make_runs(monkeypatch, lm, texts, tmp_path)
    del lm
    trained, end = train_within(runs["disk"], 1_500_000_000)
    assert trained.returncode == 0 and end.get("state") == "finished", trained.stderr[-2000:]
    plain, expected = train_within(runs["none"], 0)
    assert plain.returncode == 0 and end["digest"] == expected["digest"] is not None
