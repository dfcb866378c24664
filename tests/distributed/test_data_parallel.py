"""Gradients summed over data ranks equal those of one process that reads all sequences, and those of torch's DDP."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nbllm.distributed import Plan
from nbllm.distributed.data_parallel import DataParallel
from nbllm.distributed.mesh import Mesh
from tests.distributed.steps import Group, assert_equal_steps, take_steps


@pytest.mark.parametrize("kind", ["decoder", "encoder_decoder"])
def test_steps_of_two_ranks_equal_those_of_one_process(two_ranks, kind):
    found = two_ranks(take_steps, kind, {"data": 2})
    assert_equal_steps(found[0], take_steps(kind, {}))
    for name, weight in found[1].weights.items():
        assert torch.equal(weight, found[0].weights[name])


def layout_of(network, rank, *, bucket_bytes=1 << 10):
    from nbllm.distributed.data_parallel import GradientReducer

    plan = Plan(data=2)
    layout = DataParallel(network, plan, Group(), mesh=Mesh(plan, "cpu"), dtype=torch.float32)
    layout.reducer = GradientReducer(layout.masters, layout._group, bucket_bytes)
    return layout


class Several(nn.Module):
    """Parts of which a rank uses some, and some that nobody uses."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))

    def forward(self, x, used):
        for number in used:
            x = self.parts[number](x).tanh()
        return x


def run_against_ddp(rounds):
    rank = Group().rank
    ours, theirs = Several(), DistributedDataParallel(Several(), find_unused_parameters=True)
    layout = layout_of(ours, rank)
    for number in range(rounds):
        x = torch.randn(8, 16, generator=torch.Generator().manual_seed(10 * number + rank))
        used = (0, 1, 2) if rank == 0 else (0, 2, 4)
        theirs(x, used).square().sum().backward()

        def loss(network, batch, used=used):
            return network(batch["x"], used).square().sum(), 8, None

        layout.forward_backward([{"x": x}], loss, 1.0)
        for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            if other.grad is None:
                assert one.grad is None, name
            else:  # DDP averages
                torch.testing.assert_close(
                    one.grad, 2 * other.grad, msg=lambda text, name=name: f"{name}: {text}"
                )
        layout.drop_gradients()
        theirs.zero_grad()
    return sum(parameter.grad is None for parameter in ours.parameters())


def test_what_some_ranks_do_not_use_is_summed_and_what_none_uses_has_no_gradient(two_ranks):
    two_ranks(run_against_ddp, 2)


def freeze_and_unfreeze():
    rank = Group().rank
    network = Several()
    layout = layout_of(network, rank)
    x = torch.full((4, 16), 1.0 + rank)

    def trained(names):
        layout.freeze(names)
        layout.drop_gradients()
        layout.forward_backward([{"x": x}] * 2, lambda net, b: (net(b["x"], (0, 1)).sum(), 4, None), 1.0)
        return {name for name, parameter in network.named_parameters() if parameter.grad is not None}

    return trained(["parts.0.weight", "parts.0.bias"]), trained([])


def test_parameters_are_frozen_and_unfrozen_between_steps(two_ranks):
    frozen, free = two_ranks(freeze_and_unfreeze)[0]
    assert frozen == {"parts.1.weight", "parts.1.bias"}
    assert free == frozen | {"parts.0.weight", "parts.0.bias"}


def sum_of_means():
    """Loss sums 8, 2 and 30, 10 over tokens 8, 1 and 10, 5, of two batches on each of two ranks."""
    rank = Group().rank
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    layout = layout_of(network, rank)
    sums, tokens = [[8.0, 2.0], [30.0, 10.0]][rank], [[8, 1], [10, 5]][rank]
    batches = [
        {"sum": torch.tensor([[s]]), "tokens": torch.tensor(t)} for s, t in zip(sums, tokens, strict=True)
    ]
    found = layout.forward_backward(
        batches, lambda net, b: (net(b["sum"]).sum(), float(b["tokens"]), None), 24.0
    )
    over_all = torch.tensor(found, dtype=torch.float64)
    layout.sum([over_all])
    return float(over_all[0] / over_all[1]), float(network.weight.grad)


def test_the_loss_is_divided_once_by_all_that_counts(two_ranks):
    for loss, gradient in two_ranks(sum_of_means):
        assert loss == pytest.approx(50 / 24) and gradient == pytest.approx(50 / 24)
