"""Lion beside the algorithm in its paper, written here in NumPy.

lion-pytorch 0.2.5 gives the same weights bit for bit on the CPU (`decoupled_weight_decay=False`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from nbllm.training.optimizers.lion import Lion


def paper(theta, gradients, *, lr, beta1, beta2, decay):
    """Algorithm 2 of arXiv:2302.06675."""
    m = np.zeros_like(theta)
    for g in gradients:
        c = beta1 * m + (1 - beta1) * g
        theta = theta - lr * (np.sign(c) + decay * theta)
        m = beta2 * m + (1 - beta2) * g
    return theta, m


def test_steps_equal_the_paper():
    rng = np.random.default_rng(0)
    shapes = {"matrix": (6, 10), "other": (10, 3), "vector": (10,)}
    start = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    gradients = {name: rng.normal(size=(8, *shape)).astype(np.float32) for name, shape in shapes.items()}
    gradients["matrix"][:, 2] = 0.0  # the sign of zero is zero
    ours = {name: nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    optimizer = Lion(ours)
    for step in range(8):
        for name, p in ours.items():
            p.grad = torch.tensor(gradients[name][step])
        optimizer.configure(lr=3e-3, beta1=0.9, beta2=0.99, weight_decay=0.2)
        optimizer.step()
    for name, p in ours.items():
        decay = 0.2 if p.ndim > 1 else 0.0
        theta, m = paper(start[name], gradients[name], lr=3e-3, beta1=0.9, beta2=0.99, decay=decay)
        np.testing.assert_allclose(p.detach().numpy(), theta, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(optimizer.state[p]["exp_avg"].numpy(), m, rtol=1e-5, atol=1e-6)


def test_a_parameter_larger_than_a_batch_of_them_is_updated_as_well(monkeypatch):
    def stepped():
        ours = {str(i): nn.Parameter(torch.ones(3, 4)) for i in range(5)}
        for i, p in enumerate(ours.values()):
            p.grad = torch.full_like(p, float(i))
        optimizer = Lion(ours)
        optimizer.configure(lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.0)
        optimizer.step()
        return torch.stack([p.detach() for p in ours.values()])

    together = stepped()
    for most in (1, 25):
        monkeypatch.setattr("nbllm.training.optimizers.lion._AT_ONCE", most)
        assert torch.equal(stepped(), together)
