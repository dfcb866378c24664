"""Runs whose checkpoints lie in parts: opened, taken up, forked and replayed by one process as those in one piece."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import Shard, distribute_tensor

import nbllm as nb
from nbllm.core.errors import WeightsError
from nbllm.models.tensor_shards import FOLDER, MODEL, OPTIMIZER
from nbllm.runs import checkpoint as checkpoints
from nbllm.training.digests import state_digest, weights_digest
from tests.distributed.pool import Pool

SETTINGS = {
    "steps": 6,
    "batch_size": 2,
    "sequence_length": 32,
    "lr": 3e-3,
    "precision": "float32",
    "num_threads": 1,
    "checkpoint_interval": 0,
}


def divide(run):
    """Write a run's newest checkpoint anew, as two ranks do that hold half of each tensor."""
    from pathlib import Path

    from safetensors.torch import load_file

    from nbllm.models.loading import read_parameters
    from nbllm.training.checkpoint_writer import Contents
    from nbllm.training.sharded_state import write_description
    from nbllm.training.sharded_writer import ShardedWriter

    newest = checkpoints.checkpoints(Path(run))[-1]
    whole = {f"{MODEL}{name}": parameter.detach() for name, parameter in read_parameters(newest.path)}
    whole |= {f"{OPTIMIZER}{n}": t for n, t in load_file(newest.path / "optimizer.safetensors").items()}
    mesh = dist.init_device_mesh("cpu", (2,))
    tensors = {n: distribute_tensor(t, mesh, [Shard(0)]) if t.ndim else t for n, t in whole.items()}
    lm = nb.load(newest.path)
    writer = ShardedWriter()
    contents = Contents(lambda folder: write_description(folder, lm, None), tensors)
    writer.begin(Path(run), newest.step, contents, checkpoints.load_state(newest.path))
    return writer.finish().name


@pytest.fixture(scope="module")
def runs(texts, tokenizer, two_ranks: Pool, tmp_path_factory):
    """The same run twice, stopped at step 3: with its newest checkpoint in one piece, and in parts."""
    folder = tmp_path_factory.mktemp("runs")
    lm = nb.LM.new(
        "llama", tokenizer=tokenizer, num_layers=2, hidden_size=32, num_heads=2, max_positions=64, seed=1
    )
    stop = nb.rules.Rule(name="stop", when="step >= 3", do=[nb.rules.stop()])
    whole = nb.train(lm, texts, folder=folder, name="whole", rules=[stop], **SETTINGS).wait(progress=False)
    assert whole.step == 3
    shutil.copytree(whole.path, folder / "parts")
    assert two_ranks(divide, folder / "parts") == ["step-00000003-2"] * 2
    return whole, nb.attach(folder / "parts")


@pytest.fixture
def copies(runs, tmp_path):
    """Copies of both."""
    return [nb.attach(shutil.copytree(run.path, tmp_path / run.name)) for run in runs]


def newest(run):
    return checkpoints.checkpoints(run.path)[-1].path


def weights(run):
    return dict(nb.load(run).model.named_parameters())


def test_the_digests_do_not_depend_on_the_files(runs):
    whole, parts = map(newest, runs)
    assert (parts / FOLDER).is_dir()
    assert not (parts / "optimizer.safetensors").exists()
    assert weights_digest(parts) == weights_digest(whole)
    assert state_digest(parts) == state_digest(whole)
    first = checkpoints.checkpoints(runs[0].path)[0].path
    assert weights_digest(first) != weights_digest(whole)


def test_a_bit_of_the_optimizers_state_changes_that_digest_alone(copies):
    from safetensors.torch import load_file, save_file

    path = newest(copies[0])
    before = weights_digest(path), state_digest(path)
    tensors = load_file(path / "optimizer.safetensors")
    next(iter(tensors.values())).flatten()[0] += 1e-6
    save_file(tensors, path / "optimizer.safetensors")
    assert weights_digest(path) == before[0]
    assert state_digest(path) != before[1]


def test_the_model_is_opened(runs):
    whole, parts = map(weights, runs)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    assert nb.load(runs[1]).generate("def", max_new_tokens=4, temperature=0) == nb.load(runs[0]).generate(
        "def", max_new_tokens=4, temperature=0
    )
    assert nb.load(runs[1], dtype="bfloat16").model.dtype == torch.bfloat16


def test_it_is_taken_up_by_one_process(copies):
    ends = [nb.attach(run.path).resume() for run in copies]
    for run in copies:
        run.wait(progress=False)
    whole, parts = (run.events("end")[-1] for run in copies)
    assert whole["step"] == parts["step"] == 6
    assert whole["digest"] == parts["digest"] is not None
    assert ends


def test_it_is_forked(copies):
    forks = [run.fork(f"fork-of-{run.name}", steps=5, lr=1e-3).wait(progress=False) for run in copies]
    assert forks[0].events("end")[-1]["digest"] == forks[1].events("end")[-1]["digest"] is not None


def test_a_replay_is_compared_with_it(copies):
    assert nb.replay(copies[1], progress=False).identical


def test_values_that_are_not_finite_are_refused(copies):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    file = newest(copies[1]) / FOLDER / "00000.safetensors"
    with safe_open(file, "pt") as opened:
        said = opened.metadata()
    tensors = load_file(file)
    tensors[f"{MODEL}embedding.weight"][0, 0] = torch.nan
    save_file(tensors, file, said)
    with pytest.raises(WeightsError, match=r"embedding\.weight has values that are not finite"):
        nb.load(newest(copies[1]))


def test_a_configuration_of_another_model_is_refused(copies):
    file = newest(copies[1]) / FOLDER / "config.json"
    said = file.read_text()
    for old, new in (
        ('"hidden_size": 32', '"hidden_size": 34'),
        ('"num_layers": 2', '"num_layers": 100000000'),
    ):
        file.write_text(said.replace(old, new))
        with pytest.raises(WeightsError):
            nb.load(newest(copies[1]))


@pytest.mark.parametrize("file_bytes", [1 << 30, 20_000])
def test_it_is_exported_file_by_file_and_opens_in_transformers(runs, tmp_path, monkeypatch, file_bytes):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from nbllm.models import exporting

    monkeypatch.setattr(exporting, "FILE_BYTES", file_bytes)
    whole, parts = runs
    folder = parts.export(tmp_path / "exported")
    assert {"state.json", "manifest.json", FOLDER}.isdisjoint(file.name for file in folder.iterdir())
    assert len(list(folder.glob("model*.safetensors"))) == (1 if file_bytes > 1 << 20 else 9)
    theirs, ours = AutoModelForCausalLM.from_pretrained(folder), nb.load(whole)
    ids = torch.tensor([ours.tokenizer.encode("def add(a, b):")])
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(newest(whole))(ids).logits
        assert torch.equal(theirs(ids).logits, expected)
    assert theirs.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(folder).encode("def") == ours.tokenizer.encode("def")
    again = nb.load(folder)
    assert all(torch.equal(p, ours.model.get_parameter(n)) for n, p in again.model.named_parameters())
    whole.export(folder)  # over the older one
    assert [file.name for file in folder.glob("model*")] == ["model.safetensors"]
