"""What every optimizer must keep, and that one more is one file: SGD is declared, and steered, here."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import nbllm as nb
from nbllm.core.errors import RefusedError, UserError
from nbllm.distributed.layout import OneProcess
from nbllm.runs.settings import Setting
from nbllm.training import TrainConfig
from nbllm.training.hyperparameters import LOOP_SETTINGS
from nbllm.training.optim import Optimizer
from nbllm.training.optimizers import OPTIMIZERS
from nbllm.training.optimizers.base import SteerableOptimizer, parameter_groups


@OPTIMIZERS.register("test_sgd")
class SGD(SteerableOptimizer, torch.optim.SGD):
    """Stochastic gradient descent with momentum."""

    settings = (Setting(name="momentum", low=0.0, high=0.999, default=0.9, help="Share of the last step."),)

    def __init__(self, parameters):
        torch.optim.SGD.__init__(self, parameter_groups(parameters))

    def configure(self, *, lr, momentum):
        for group in self.param_groups:
            group.update(lr=lr, momentum=momentum)


@pytest.fixture(params=list(OPTIMIZERS))
def kind(request):
    return OPTIMIZERS[request.param]


def defaults(kind):
    return {setting.name: setting.default for setting in kind.settings}


def trained(kind, dtype=torch.float32, count=4, interrupted=False, **changed):
    """Train a small model and return its optimizer."""
    torch.manual_seed(0)
    blocks = nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128), nn.Linear(128, 64))
    model = nn.Sequential(OrderedDict(embedding=nn.Linear(4, 64), blocks=blocks, head=nn.Linear(64, 2)))
    optimizer = Optimizer(OneProcess(model, dtype=dtype), kind)
    for step in range(count):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step)).to(dtype)
        loss = (model(x).float() - 1).square().mean()
        loss.backward()
        optimizer.layout.take_gradients()
        optimizer.configure(lr=1e-2, **{**defaults(kind), **changed})
        optimizer.step()
        optimizer.zero_grad()
        if interrupted:
            state = optimizer.state_tensors()
            masters = {name: master.detach().clone() for name, master in optimizer.masters.items()}
            optimizer = Optimizer(OneProcess(model, dtype=dtype), kind)
            with torch.no_grad():
                for name, master in optimizer.masters.items():
                    master.copy_(masters[name])
            optimizer.load_state_tensors(state)
    optimizer.loss = loss.item() if count else math.nan
    return optimizer


def test_settings_are_declared_with_a_default_in_range_and_help(kind):
    taken = {field.name for field in dataclasses.fields(TrainConfig)} | {s.name for s in LOOP_SETTINGS}
    for setting in kind.settings:
        assert setting.name.isidentifier() and setting.name not in taken
        assert setting.check(setting.default) == setting.default
        assert setting.help


def test_every_declared_setting_has_an_effect(kind):
    before = trained(kind)
    for setting in kind.settings:
        other = (setting.default + setting.high) / 2
        after = trained(kind, **{setting.name: other})
        assert any(not torch.equal(after.masters[name], before.masters[name]) for name in before.masters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_state_goes_and_comes_back_bit_for_bit(kind, dtype):
    whole, parts = trained(kind, dtype), trained(kind, dtype, interrupted=True)
    for name, master in whole.masters.items():
        assert torch.equal(master, parts.masters[name])


def test_its_state_is_tensors_by_parameter(kind):
    optimizer = trained(kind)
    for name, tensor in optimizer.state_tensors().items():
        assert isinstance(tensor, torch.Tensor)
        assert name.partition(".")[2] in optimizer.masters


def test_all_groups_are_trained_and_one_may_be_empty(kind):
    fresh, after = trained(kind, count=0), trained(kind)
    assert all(not torch.equal(after.masters[name], fresh.masters[name]) for name in fresh.masters)
    for shape in ((2, 2), (2,)):
        assert kind({"blocks.0.weight": torch.zeros(shape, requires_grad=True)}).param_groups


def test_it_learns(kind):
    assert trained(kind, count=40).loss < 0.5 * trained(kind, count=1).loss


def test_state_of_another_shape_is_refused(kind):
    optimizer = trained(kind)
    for name, value in optimizer.state_tensors().items():
        if value.ndim:
            with pytest.raises(UserError, match="fits no parameter"):
                optimizer.load_state_tensors({name: torch.zeros(3, 5, 7)})


def test_parameters_without_a_gradient_stay(kind):
    optimizer = trained(kind, count=0)
    before = {name: master.detach().clone() for name, master in optimizer.masters.items()}
    optimizer.masters["head.bias"].grad = torch.ones(2)
    optimizer.configure(lr=1e-2, **defaults(kind))
    optimizer.step()
    changed = {name for name, master in optimizer.masters.items() if not torch.equal(master, before[name])}
    assert changed == {"head.bias"}


@pytest.fixture(scope="module")
def texts():
    return nb.data.load("pydocs").select(range(8))


@pytest.fixture(scope="module")
def tokenizer(texts):
    return nb.data.train_tokenizer(texts, vocab_size=320)


@pytest.fixture
def train(texts, tokenizer, tmp_path):
    def train(name, **changes):
        shape = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "max_positions": 32, "seed": 1}
        config = {
            "optimizer": "test_sgd", "steps": 12, "batch_size": 2, "sequence_length": 32, "lr": 0.1,
            "sample_interval": 0, "checkpoint_interval": 4, "precision": "float32", "num_threads": 1,
            "schedule": "constant", "warmup_steps": 2,
        }  # fmt: skip
        config |= changes
        lm = nb.LM.new("gpt2", tokenizer=tokenizer, **shape)
        return nb.train(lm, texts, folder=tmp_path, name=name, **config)

    return train


def test_a_new_optimizer_trains_is_steered_resumes_and_is_replayed(train):
    run = train("sgd", steps=1_000_000, momentum=0.5)
    run.wait(step=3, progress=False)
    assert {setting.name for setting in run.settings} == {
        "lr", "momentum", "clip", "accumulation", "steps",
    }  # fmt: skip
    assert run.config["momentum"] == 0.5
    with pytest.raises(RefusedError, match="at most 0.999"):
        run.set(momentum=1.0)
    with pytest.raises(RefusedError, match="no setting 'beta1'"):
        run.set(beta1=0.5)
    run.set(momentum=0.8)
    run.wait(step=run.step + 2, progress=False)
    run.stop()
    run.wait(progress=False)
    state = load_file(run.checkpoints[-1].path / "optimizer.safetensors")
    assert {name.partition(".")[0] for name in state} == {"momentum_buffer"}
    run.resume()
    run.wait(step=run.step + 3, progress=False)
    run.set(steps=run.step + 4)
    run.wait(progress=False)
    losses = run.history("loss")[1]
    assert losses[-1] < losses[0]
    assert nb.replay(run, progress=False).identical  # in one go, without the stop


def test_a_fork_keeps_the_optimizer_and_may_change_its_settings(train):
    run = train("parent").wait(progress=False)
    fork = run.fork("child", step=8, momentum=0.0).wait(progress=False)
    assert fork.config["momentum"] == 0.0
    with pytest.raises(UserError, match="keeps 'test_sgd'"):
        run.fork("other", step=8, optimizer="adamw")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"momentum": 1.0}, "at most 0.999"),
        ({"momentum": "much"}, "must be a number"),
        ({"momentun": 0.5}, "Did you mean 'momentum'"),
        ({"beta1": 0.5}, "no setting 'beta1'"),
        ({"optimizer": "test_sgb"}, "no optimizer named 'test_sgb'"),
        ({"optimizer": ["test_sgd"]}, "must be a text"),
    ],
)
def test_settings_of_an_optimizer_are_checked_before_a_run_is_made(train, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train("bad", **changes)
    assert not list(tmp_path.iterdir())


def test_a_configuration_is_the_same_after_json(tmp_path):
    config = TrainConfig(optimizer="test_sgd", optimizer_settings={"momentum": 0.25}, lr=1)
    plain = config.to_dict()
    assert plain["momentum"] == 0.25 and "optimizer_settings" not in plain
    assert TrainConfig.from_dict(plain) == config
    assert TrainConfig().replace(beta1=0.5).values["beta1"] == 0.5
