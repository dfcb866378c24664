from __future__ import annotations

import torch
from torch import nn

from nbllm.training.optimizers.adamw import AdamW
from nbllm.training.optimizers.adamw_8bit import AdamW8Bit

SETTINGS = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}


def trained(kind, shapes, count=20, scale=1.0):
    """Take steps with gradients that differ by 100 between columns; return weights and optimizer."""
    rng = torch.Generator().manual_seed(0)
    values = {name: nn.Parameter(torch.randn(shape, generator=rng)) for name, shape in shapes.items()}
    optimizer = kind(values)
    for _ in range(count):
        for p in values.values():
            spread = torch.logspace(-2, 0, p.shape[-1])
            p.grad = (torch.randn(p.shape, generator=rng) + 0.5) * spread * scale
        optimizer.configure(**SETTINGS)
        optimizer.step()
    return values, optimizer


def test_weights_go_the_way_of_float32_to_within_a_few_percent():
    """The paper's table 3 gives the relative error of one Adam update with blockwise dynamic quantization as 5%."""
    shapes = {"wide": (16, 512), "odd": (48, 300), "small": (8, 64), "vector": (8192,)}
    for scale in (1.0, 1e-7):  # squares far below what a clipped scale could hold
        start, _ = trained(AdamW, shapes, count=0, scale=scale)
        whole, _ = trained(AdamW, shapes, scale=scale)
        eight, _ = trained(AdamW8Bit, shapes, scale=scale)
        for name in ("small", "vector"):
            torch.testing.assert_close(eight[name], whole[name], rtol=1e-6, atol=1e-7)
        for name in ("wide", "odd"):
            moved, difference = whole[name] - start[name], eight[name] - whole[name]
            assert 0 < difference.norm() < 0.05 * moved.norm()
            assert difference.abs().max() < 5 * SETTINGS["lr"]


def test_about_two_bytes_are_held_for_each_element():
    values, optimizer = trained(AdamW8Bit, {"wide": (64, 1024)}, count=1)
    held = sum(value.nbytes for value in optimizer.state[values["wide"]].values())
    assert held / values["wide"].numel() < 2.05


def test_a_block_with_large_values_leaves_the_others_exact():
    values = {"w": nn.Parameter(torch.zeros(16, 512))}
    optimizer = AdamW8Bit(values)
    gradient = torch.randn(16, 512, generator=torch.Generator().manual_seed(0))
    scaled = gradient.clone()
    scaled[:, :256] *= 1e4
    for g in (gradient, scaled):
        optimizer.state.clear()
        values["w"].grad = g
        optimizer.configure(**SETTINGS)
        optimizer.step()
        codes = optimizer.state[values["w"]]["exp_avg_codes"]
        if g is gradient:
            before = codes.clone()
    assert torch.equal(codes, before)  # each block has its own scale


def test_rare_gradients_make_no_large_steps():
    """A second moment rounded to zero would divide by eps: the row of a rare token in an embedding."""
    values = {"w": nn.Parameter(torch.zeros(64, 256))}
    optimizer = AdamW8Bit(values)
    for step in range(30):
        gradient = torch.full((64, 256), 1e-4)
        gradient[:, 0] = 1.0
        if step % 3:
            gradient[:, 1:] = 0.0
        before = values["w"].detach().clone()
        values["w"].grad = gradient
        optimizer.configure(**{**SETTINGS, "weight_decay": 0.0})
        optimizer.step()
        assert (values["w"] - before).abs().max() < 5 * SETTINGS["lr"]
