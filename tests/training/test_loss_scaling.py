"""The loss in float16 is scaled as torch's GradScaler does it; a step that overflows changes nothing but the scale."""

from __future__ import annotations

import math

import pytest
import torch

from nbllm.data import WindowSource
from nbllm.distributed.layout import OneProcess
from nbllm.objectives import CausalLM
from nbllm.training.config import TrainConfig
from nbllm.training.loss_scaling import GROWTH_INTERVAL, INITIAL_SCALE, next_scale
from nbllm.training.optim import Optimizer
from nbllm.training.optimizers.adamw import AdamW
from nbllm.training.step import Stepper
from nbllm.training.train_state import TrainState


def test_the_scale_is_that_of_torch():
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=INITIAL_SCALE, growth_interval=GROWTH_INTERVAL)
    scale, steps = INITIAL_SCALE, 0
    for step in range(2 * GROWTH_INTERVAL + 10):
        overflowed = step in (3, 4, 50)
        scaler.scale(parameter.sum()).backward()
        if overflowed:
            parameter.grad.fill_(math.inf)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scale, steps = next_scale(scale, steps, overflowed=overflowed)
        assert scale == scaler.get_scale()


@pytest.fixture
def stepper(lm, store):
    config = TrainConfig(batch_size=2, sequence_length=32, precision="float16", clip=1e6)
    optimizer = Optimizer(OneProcess(lm.model, dtype=torch.float16), AdamW)
    return Stepper(CausalLM(), optimizer, WindowSource(store, length=33, overlap=1), config, "cpu")


def test_gradients_do_not_depend_on_the_scale(stepper):
    state = TrainState(values={**stepper.config.values, "lr": 0.0})
    norms = [stepper.step(state.replace(loss_scale=scale)).grad_norm for scale in (2.0**14, 2.0**6)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-2)


def test_a_step_that_overflows_is_skipped_and_the_scale_halved(stepper):
    before = {name: master.detach().clone() for name, master in stepper.optimizer.masters.items()}
    state = TrainState(values=stepper.config.values, loss_scale=2.0**40, bad_steps=0)
    result = stepper.step(state)
    assert not result.good and math.isfinite(result.loss)
    assert (result.state.loss_scale, result.state.bad_steps, result.state.step) == (2.0**39, 0, 1)
    assert all(torch.equal(master, before[name]) for name, master in stepper.optimizer.masters.items())
    good = stepper.step(result.state.replace(loss_scale=2.0**10))
    assert good.good and good.state.scaled_steps == 1


def test_what_is_not_finite_without_a_scale_is_a_bad_step(stepper):
    with torch.no_grad():
        stepper.optimizer.masters["norm.weight"].fill_(math.nan)
    stepper.layout.publish()
    result = stepper.step(TrainState(values=stepper.config.values))
    assert (result.good, result.state.bad_steps) == (False, 1)
