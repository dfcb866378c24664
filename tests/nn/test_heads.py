import pytest
import torch

from nbllm.nn import heads
from nbllm.nn.attention_backends import attend
from nbllm.nn.heads import split_heads


def fused(batch=2, length=5, num_heads=8, head_dim=3):
    draw = torch.Generator().manual_seed(0)
    return torch.randn(batch, length, num_heads * head_dim, generator=draw, requires_grad=True)


def test_groups_are_views_in_order():
    x = fused()
    query, key, value = split_heads(x, (4, 2, 2), 3)
    assert [tuple(part.shape) for part in (query, key, value)] == [(2, 4, 5, 3), (2, 2, 5, 3), (2, 2, 5, 3)]
    assert torch.equal(key[1, 0, 4], x[1, 4, 12:15])
    assert value.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("length", [1, 5])
def test_gradients_from_anywhere(batch, length):
    x = fused(batch, length)
    parts = split_heads(x, (4, 2, 2), 3)
    weights = torch.randn_like(x)
    expected = torch.cat([w.transpose(1, 2) for w in split_heads(weights, (4, 2, 2), 3)], dim=2).flatten(2)
    scattered = [w.clone() for w in split_heads(weights, (4, 2, 2), 3)]
    assert torch.equal(torch.autograd.grad(parts, x, scattered, retain_graph=True)[0], expected)
    beside = [w.detach() for w in split_heads(weights, (4, 2, 2), 3)]
    assert torch.equal(torch.autograd.grad(parts, x, beside)[0], expected)


def test_a_group_without_gradient_gets_zeros():
    x = fused()
    query, _, value = split_heads(x, (4, 2, 2), 3)
    grad = torch.autograd.grad(query.sum() + 2 * value.sum(), x)[0]
    assert torch.equal(grad[0, 0], torch.tensor([1.0] * 12 + [0.0] * 6 + [2.0] * 6))


def test_what_only_looks_side_by_side_is_copied():
    room = torch.randn(2, 5, 8, 3)
    query, key, value = (part.transpose(1, 2) for part in room.split((4, 2, 2), dim=2))
    assert heads._side_by_side((query, key, value)) is not None
    assert heads._side_by_side((query, value, key)) is None
    assert heads._side_by_side((query, key.clone(), value)) is None
    assert heads._side_by_side((query.contiguous(), key, value)) is None


def test_blocked_attention_leaves_its_gradients_side_by_side(monkeypatch):
    monkeypatch.setattr(torch, "cat", lambda *args, **options: pytest.fail("copied"))
    x = fused(length=20)
    out = attend(*split_heads(x, (4, 2, 2), 3), causal=True, backend="blocked")
    assert torch.autograd.grad(out.sum(), x)[0].shape == x.shape
