"""Checkpoints of a run that trains an adapter refer to the model's own weights, which the run's folder has once."""

import json
import os

import pytest
import torch

import nbllm as nb
from nbllm.core.base_weights import BaseWeights
from nbllm.core.errors import WeightsError
from nbllm.evaluation.run_weights import weights_step
from nbllm.runs import checkpoint as checkpoints
from nbllm.runs.rules import Rule, unfreeze

IDS = torch.tensor([[3, 7, 5, 9, 11, 4]])


@pytest.fixture
def run(lm, store, config, tmp_path):
    lm.attach(nb.LoRA(rank=2), seed=1)
    run = nb.train(lm, store, folder=tmp_path, name="adapted", **{**config, "checkpoint_interval": 2})
    run.wait(progress=False)
    return run


def weights_in(path):
    return {file.name for file in path.glob("*.safetensors")}


def test_the_weights_are_there_once(run, lm):
    infos = checkpoints.checkpoints(run.path)
    assert len(infos) > 1
    size = sum(parameter.nbytes for parameter in lm.model.parameters())
    for info in infos:
        assert weights_in(info.path) <= {"adapters.safetensors", "optimizer.safetensors"}
        assert info.bytes < size
        assert checkpoints.verify(info.path) == []
    assert weights_in(run.path / "base") == {"model.safetensors"}
    assert weights_step(lm, run) == infos[-1].step
    assert torch.equal(nb.load(run).model(IDS), lm.model(IDS))
    assert torch.equal(nb.load(infos[-1].path).model(IDS), lm.model(IDS))


def test_a_fork_and_a_replay_have_the_same_files(run, lm):
    fork = run.fork("forked", step=checkpoints.checkpoints(run.path)[1].step)
    fork.wait(progress=False)
    assert fork.state == "finished"
    files = [each.path / "base" / "model.safetensors" for each in (run, fork)]
    assert os.path.samefile(*files)
    assert nb.replay(fork, progress=False).identical
    assert torch.equal(nb.load(fork).model(IDS), lm.model(IDS))


def test_a_checkpoint_holds_all_weights_once_others_are_trained_too(lm, store, config, tmp_path):
    lm.attach(nb.LoRA(rank=2), seed=1)
    settings = {**config, "steps": 8, "checkpoint_interval": 2, "keep_checkpoints": 9}
    thaw = Rule(name="thaw", when="step == 4", do=unfreeze("*.up.weight"), limit=1)
    run = nb.train(lm, store, folder=tmp_path, name="thawed", rules=[thaw], **settings)
    run.wait(progress=False)
    held = {info.step: weights_in(info.path) for info in checkpoints.checkpoints(run.path)}
    assert "model.safetensors" not in held[2] and "model.safetensors" in held[8]
    assert torch.equal(nb.load(run).model(IDS), lm.model(IDS))
    assert nb.replay(run, progress=False).identical


def test_damage_to_the_base_is_found(run):
    info = checkpoints.checkpoints(run.path)[-1]
    file = run.path / "base" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    assert any("base/model.safetensors is damaged" in problem for problem in checkpoints.verify(info.path))
    with pytest.raises(WeightsError, match="damaged"):
        nb.load(run)
    file.unlink()
    assert any("cannot be read" in problem for problem in checkpoints.verify(info.path))


@pytest.mark.parametrize(
    "content",
    [
        {"path": "../../../elsewhere", "files": {"model.safetensors": ["0" * 64, 1]}},
        {"path": "../../base", "files": {"../x": ["0" * 64, 1]}},
        {"path": "../../base", "files": {}},
        {"path": "../../base"},
        [],
    ],
)
def test_a_reference_to_elsewhere_is_refused(tmp_path, content):
    (tmp_path / "base.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"elsewhere|damaged"):
        BaseWeights.referred_to_by(tmp_path)
