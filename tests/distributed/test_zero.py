"""What data ranks share out: the memory that each then holds, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from nbllm.distributed import Plan, lay_out
from nbllm.distributed.sharded_tensors import local_part, sum_of_squares
from nbllm.objectives import CausalLM
from nbllm.training.optim import Optimizer
from nbllm.training.optimizers.adamw import AdamW
from tests.distributed.steps import Group, make_batch, make_network

OBJECTIVE = CausalLM()


def loss(network, batch):
    return *OBJECTIVE.loss(network, batch), None


def layout_of(plan, dtype="float32", kind="decoder", **changes):
    return lay_out(make_network(kind, **changes), Plan(**plan), Group(), dtype=getattr(torch, dtype))


def num_bytes(tensors):
    """Return the memory of tensors, each storage once."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in map(local_part, tensors)
    }
    return sum(storages.values())


def held_bytes(zero, dtype):
    """Take a step, and return what this rank held of parameters, gradients and optimizer state, for each element."""
    layout = layout_of({"zero": zero}, dtype, hidden_size=192, num_layers=4)
    optimizer = Optimizer(layout, AdamW)
    elements = sum(p.numel() for p in layout.parameters().values())
    after_forward = []
    layout.loss_module.register_forward_hook(
        lambda *_: after_forward.append(
            num_bytes([*layout.network.parameters(), *layout.parameters().values()])
        )
    )
    layout.forward_backward([make_batch("decoder", layout.data_rank)], loss, 64.0)
    gradients = num_bytes(optimizer.gradients())
    optimizer.configure(lr=1e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
    optimizer.step()
    optimizer.zero_grad()
    assert zero < 2 or all(
        isinstance(p, DTensor) for p in layout.network.parameters()
    )  # nothing is left gathered
    state = num_bytes(v for of in optimizer.inner.state.values() for v in of.values() if v.ndim)
    return [each / elements for each in (*after_forward, gradients, state)]


@pytest.mark.parametrize(
    ("zero", "dtype", "theory"),
    [
        # Bytes for each element: parameters with their float32 masters, gradients, AdamW's two moments.
        (0, "float32", (4, 4, 8)),
        (1, "float32", (4, 4, 8 / 2)),
        (2, "float32", (4 + 4 / 2, 4 / 2, 8 / 2)),
        (3, "float32", (4 / 2, 4 / 2, 8 / 2)),
        (0, "bfloat16", (2 + 4, 4, 8)),
        (1, "bfloat16", (2 + 4 / 2, 4, 8 / 2)),
        (2, "bfloat16", (2 + 4 / 2, 4 / 2, 8 / 2)),
        (3, "bfloat16", (4 / 2, 4 / 2, 8 / 2)),
    ],
)
def test_a_rank_holds_what_the_theory_says(two_ranks, zero, dtype, theory):
    for found in two_ranks(held_bytes, zero, dtype):
        assert found == pytest.approx(theory, rel=0.05)


def between_steps(zero):
    """Evaluate, sample from the whole network, freeze and unfreeze between steps; return losses and weights."""
    layout = layout_of({"zero": zero})
    batch = make_batch("decoder", layout.data_rank)
    found = []
    for frozen in ([], ["blocks.0.attention.query.weight", "embedding.weight"], []):
        layout.freeze(frozen)
        layout.forward_backward([batch], loss, 64.0)
        trained = {name for name, p in layout.parameters().items() if p.grad is not None}
        assert set(layout.parameters()) - trained == set(frozen)
        with torch.no_grad():
            for parameter in layout.parameters().values():
                if parameter.grad is not None:
                    local_part(parameter).sub_(local_part(parameter.grad), alpha=0.1)
        layout.publish()
        layout.drop_gradients()
        measured = layout.evaluate(batch, loss)[0]
        with layout.whole_network() as network, torch.no_grad():
            assert (network is None) == (dist.get_rank() > 0)
            if network is not None:
                assert float(loss(network, batch)[0]) == pytest.approx(measured, rel=1e-5)
        found.append(measured)
    return found


def test_what_happens_between_steps_leaves_no_old_weights(two_ranks):
    expected, *others = (two_ranks(between_steps, zero) for zero in range(4))
    for found in others:
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, rel=1e-5)


def assigned(zero):
    """Put whole parameters into a layout and read them back."""
    layout = layout_of({"zero": zero}, kind="untied")
    wanted = dict(make_network("untied", initializer_range=0.3).named_parameters())
    for name, parameter in wanted.items():
        layout.assign(name, parameter.detach())
    layout.publish()
    whole = {name: layout.whole(name) for name in wanted}
    with layout.whole_network(in_float32=True) as network:
        if network is None:
            return all(each is None for each in whole.values())
        held = dict(network.named_parameters())
        return all(torch.equal(whole[n], p) and torch.equal(held[n], p) for n, p in wanted.items())


@pytest.mark.parametrize("zero", range(4))
def test_whole_parameters_are_assigned_and_read_back(two_ranks, zero):
    assert all(two_ranks(assigned, zero))


def norm_over_meshes():
    """Sharded (3, 4), replicated 12, two tensor ranks: the norm is 13; not 17.69, 5 or 12."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tensor",))
    own = torch.tensor([[3.0], [4.0]][mesh.get_local_rank()])
    sharded = DTensor.from_local(own, mesh, [Shard(0)], run_check=False)
    replicated = DTensor.from_local(torch.tensor([12.0]), mesh, [Replicate()], run_check=False)
    found = []
    for other in (replicated, torch.tensor([12.0])):
        total = sum_of_squares([sharded, other], 2)
        dist.all_reduce(total)
        found.append(float(total.sqrt()))
    return found


def test_every_element_counts_once_in_the_norm(two_ranks):
    assert two_ranks(norm_over_meshes) == [[13.0, 13.0]] * 2


def first_weights(zero):
    layout = layout_of({"zero": zero})
    whole = {name: layout.whole(name) for name in layout.parameters()}
    return {name: tensor.clone() for name, tensor in whole.items() if tensor is not None}


def test_the_first_weights_do_not_depend_on_the_plan(two_ranks):
    expected = dict(make_network("decoder").named_parameters())
    for zero in (0, 3):
        found = two_ranks(first_weights, zero)[0]
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_gradients_are_added_up_and_not_averaged(two_ranks):
    def gradient(zero):
        layout = layout_of({"zero": zero})
        layout.forward_backward([make_batch("decoder", 0)], loss, 64.0)  # the same on both ranks
        found = layout.norm([p.grad for p in layout.parameters().values()])
        alone = make_network("decoder")
        (loss(alone, make_batch("decoder", 0))[0] / 64.0).backward()
        return found / float(torch.nn.utils.get_total_norm([p.grad for p in alone.parameters()]))

    for zero in (0, 1, 2, 3):
        assert two_ranks(gradient, zero) == pytest.approx([2.0, 2.0], rel=1e-5)
