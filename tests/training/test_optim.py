from __future__ import annotations

import pytest
import torch
from torch import nn

from nbllm.core.errors import UserError
from nbllm.distributed.layout import OneProcess
from nbllm.training.optim import Optimizer
from nbllm.training.optimizers.adamw import AdamW


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))


def take_steps(model, optimizer_step, count=5):
    for seed in range(count):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
        loss = model(x.to(next(model.parameters()).dtype)).float().square().mean()
        loss.backward()
        optimizer_step()


SETTINGS = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}


def test_float32_equals_torch_adamw_with_decay_on_matrices_only():
    ours, theirs = make_model(), make_model()
    optimizer = Optimizer(OneProcess(ours), AdamW)

    def step():
        optimizer.layout.take_gradients()
        optimizer.clip(0.5)
        optimizer.configure(**SETTINGS)
        optimizer.step()
        optimizer.zero_grad()

    matrices = [p for p in theirs.parameters() if p.ndim >= 2]
    vectors = [p for p in theirs.parameters() if p.ndim < 2]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=1e-2, betas=(0.9, 0.95),
    )  # fmt: skip

    def reference_step():
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        reference.step()
        reference.zero_grad()

    take_steps(ours, step)
    take_steps(theirs, reference_step)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_masters_keep_steps_that_bfloat16_would_lose():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    optimizer = Optimizer(OneProcess(model, dtype=torch.bfloat16), AdamW)
    for _ in range(100):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.layout.take_gradients()
        optimizer.configure(lr=1e-4, beta1=0.0, beta2=0.0, eps=1e-8, weight_decay=0.0)
        optimizer.step()
        optimizer.zero_grad()
    # Each step is a fortieth of bfloat16's spacing at 1; a hundred of them are more than one spacing.
    assert optimizer.masters["weight"].item() == pytest.approx(0.99, abs=1e-5)
    assert model.weight.dtype == torch.bfloat16
    assert model.weight.item() == torch.tensor(0.99).bfloat16().item()


def test_frozen_parameters_stay_and_others_move():
    model = make_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = Optimizer(OneProcess(model), AdamW)
    optimizer.freeze({"0.weight", "0.bias"})

    def step():
        optimizer.layout.take_gradients()
        optimizer.configure(**SETTINGS)
        optimizer.step()
        optimizer.zero_grad()

    take_steps(model, step, count=1)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"1.weight", "1.bias", "2.weight", "2.bias"}
    optimizer.freeze([])
    take_steps(model, step, count=1)
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_state_of_another_model_is_refused():
    optimizer = Optimizer(OneProcess(make_model()), AdamW)
    with pytest.raises(UserError, match="exp_avg.0.weight"):
        optimizer.load_state_tensors({"exp_avg.0.weight": torch.zeros(3)})
