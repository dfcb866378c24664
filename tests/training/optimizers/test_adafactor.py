from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from nbllm.training.optimizers.adafactor import Adafactor

SETTINGS = {"decay_rate": 0.8, "clip_threshold": 1.0, "smallest_scale": 1e-3, "weight_decay": 0.1}


def parameters(seed=0):
    rng = torch.Generator().manual_seed(seed)
    shapes = {"matrix": (24, 40), "experts": (3, 8, 16), "vector": (40,), "zero": (6, 6)}
    values = {name: nn.Parameter(torch.randn(shape, generator=rng) * 0.1) for name, shape in shapes.items()}
    nn.init.zeros_(values["zero"])
    return values


def gradients(step):
    rng = torch.Generator().manual_seed(1000 + step)
    return {name: torch.randn(p.shape, generator=rng) * 10.0**-step for name, p in parameters().items()}


def test_steps_equal_those_of_transformers():
    ours, theirs = parameters(), parameters()
    optimizer = Adafactor(ours)
    groups = [
        {"params": [p for p in theirs.values() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [theirs["vector"]], "weight_decay": 0.0},
    ]
    reference = transformers.optimization.Adafactor(
        groups, lr=0.03, scale_parameter=True, relative_step=False, warmup_init=False
    )
    for step in range(6):
        for name, gradient in gradients(step).items():
            ours[name].grad, theirs[name].grad = gradient.clone(), gradient.clone()
        optimizer.configure(lr=0.03, **SETTINGS)
        optimizer.step()
        reference.step()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-7)


def test_steps_equal_those_of_torch_where_it_does_not_limit_the_learning_rate():
    ours, theirs = parameters(), parameters()
    optimizer = Adafactor(ours)
    reference = torch.optim.Adafactor(theirs.values(), lr=0.03, eps=(1e-15, 1e-3))
    for step in range(4):
        for name, gradient in gradients(0).items():
            ours[name].grad, theirs[name].grad = gradient * (step + 1), gradient * (step + 1)
        optimizer.configure(lr=0.03, **{**SETTINGS, "weight_decay": 0.0})
        optimizer.step()
        reference.step()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-7)


def test_its_state_is_one_number_for_each_row_and_column():
    ours = parameters()
    optimizer = Adafactor(ours)
    for name, gradient in gradients(0).items():
        ours[name].grad = gradient
    optimizer.configure(lr=0.01, **SETTINGS)
    optimizer.step()
    state = optimizer.state[ours["matrix"]]
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        "step": (), "row": (24,), "column": (40,),
    }  # fmt: skip
    assert optimizer.fits(ours["experts"], "column", torch.zeros(3, 16))
    assert not optimizer.fits(ours["experts"], "column", torch.zeros(3, 8))


@pytest.mark.parametrize("value", [0.0, 1e-20])
def test_a_gradient_of_nearly_nothing_changes_nothing_by_much(value):
    ours = parameters()
    before = {name: p.detach().clone() for name, p in ours.items()}
    optimizer = Adafactor(ours)
    for p in ours.values():
        p.grad = torch.full_like(p, value)
    optimizer.configure(lr=0.01, **{**SETTINGS, "weight_decay": 0.0})
    optimizer.step()
    for name, p in ours.items():
        torch.testing.assert_close(p.detach(), before[name], rtol=0, atol=1e-4)
