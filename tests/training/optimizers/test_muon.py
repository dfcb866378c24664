from __future__ import annotations

import torch
from torch import nn

from nbllm.training.optimizers.adamw import AdamW
from nbllm.training.optimizers.muon import Muon, orthogonalized

SETTINGS = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
SHAPES = {
    "embedding.weight": (50, 12), "blocks.0.attention.query.weight": (12, 12), "blocks.0.up.weight": (32, 12),
    "blocks.1.up.weight": (32, 12), "blocks.0.down.weight": (12, 32), "blocks.0.norm.weight": (12,),
    "head.weight": (50, 12),
}  # fmt: skip


def parameters():
    rng = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=rng)) for name, shape in SHAPES.items()}


def train(optimizers, values, count=4):
    for step in range(count):
        rng = torch.Generator().manual_seed(step)
        for p in values.values():
            p.grad = torch.randn(p.shape, generator=rng)
        for optimizer in optimizers:
            optimizer.step()


def test_matrices_of_blocks_equal_torch_and_the_rest_equals_adamw():
    ours, theirs = parameters(), parameters()
    optimizer = Muon(ours)
    optimizer.configure(lr=0.02, momentum=0.95, **SETTINGS)
    hidden = {n: p for n, p in theirs.items() if n.startswith("blocks.") and p.ndim == 2}
    others = {n: p for n, p in theirs.items() if n not in hidden}
    adamw = AdamW(others)
    adamw.configure(lr=0.02, **SETTINGS)
    muon = torch.optim.Muon(hidden.values(), lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    start = parameters()
    train([optimizer], ours)
    train([adamw, muon], theirs)
    for name in others:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-7)
    for name in hidden:  # torch computes in bfloat16
        moved, expected = ours[name] - start[name], theirs[name] - start[name]
        assert (moved - expected).norm() < 0.02 * expected.norm()


def test_the_iteration_is_that_of_its_authors():
    def reference(matrix):
        """`zeropower_via_newtonschulz5` of github.com/KellerJordan/Muon, in float64."""
        a, b, c = 3.4445, -4.7750, 2.0315
        x = matrix.double()
        x = x.T if len(matrix) > len(matrix.T) else x
        x = x / (x.norm() + 1e-7)
        for _ in range(5):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x.T if len(matrix) > len(matrix.T) else x

    for shape in ((3, 20, 20), (2, 33, 12), (2, 12, 33)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
        out = orthogonalized(x)
        for one, made in zip(x, out, strict=True):
            torch.testing.assert_close(made.double(), reference(one), rtol=1e-4, atol=1e-4)
            singular = torch.linalg.svdvals(made)
            assert 0.5 < singular.min() and singular.max() < 1.3
    assert torch.equal(orthogonalized(torch.zeros(1, 4, 6)), torch.zeros(1, 4, 6))


def test_matrices_computed_together_or_one_by_one_are_the_same(monkeypatch):
    def trained():
        values = parameters()
        optimizer = Muon(values)
        optimizer.configure(lr=0.02, momentum=0.95, **SETTINGS)
        train([optimizer], values)
        return values

    together = trained()
    monkeypatch.setattr("nbllm.training.optimizers.muon._AT_ONCE", 1)
    for name, value in trained().items():
        torch.testing.assert_close(value, together[name], rtol=1e-5, atol=1e-6)


def test_a_matrix_of_a_block_needs_one_moment_and_no_other_state():
    values = parameters()
    optimizer = Muon(values)
    optimizer.configure(lr=0.02, momentum=0.95, **SETTINGS)
    train([optimizer], values)
    assert set(optimizer.state[values["blocks.0.up.weight"]]) == {"momentum_buffer"}
    assert set(optimizer.state[values["head.weight"]]) == {"exp_avg", "exp_avg_sq", "step"}
