"""RWKV's running mean: the known case, the compiled kernel and torch's chunks against transformers' loop."""

import math

import pytest
import torch
from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu

from nbllm.nn import kernels, wkv as module
from nbllm.nn.wkv import empty_state, wkv

CPU = torch.device("cpu")
BATCH, LENGTH, CHANNELS = 3, 37, 130
FORMS = ["kernel", "chunks"]


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """Both forms take any size."""
    if request.param == "kernel" and kernels.compiled("wkv") is None:
        pytest.skip("not compiled here")
    monkeypatch.setattr(module, "serves", lambda *_, **__: request.param == "kernel")
    return request.param


def operands(scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(0)
    logarithm, bonus = (torch.randn(CHANNELS, generator=generator) for _ in range(2))
    key, value = (torch.randn(BATCH, LENGTH, CHANNELS, generator=generator) for _ in range(2))
    return [each.requires_grad_() for each in (logarithm, bonus, scale * key + shift, value)]


def ours(logarithm, bonus, key, value):
    return wkv(logarithm.exp(), bonus, key, value, empty_state(len(key), key.shape[2], CPU))


def test_the_known_case(form):
    values = torch.tensor([1.0, 2.0, 3.0])[None, :, None].expand(1, 3, 64).contiguous()
    zeros = torch.zeros(64)
    out, _ = wkv(zeros + math.log(2), zeros, 0 * values, values, empty_state(1, 64, CPU))
    torch.testing.assert_close(out[0], torch.tensor([[1.0], [1.5], [2.2]]).expand(3, 64))


@pytest.mark.parametrize(("spread", "shift"), [(1.0, 0.0), (3.0, 100.0), (3.0, -100.0), (0.0, 0.0)])
def test_mean_state_and_gradients_equal_transformers(form, spread, shift):
    given = operands(spread, shift)
    weights = torch.randn(BATCH, LENGTH, CHANNELS, generator=torch.Generator().manual_seed(1))
    expected, state = rwkv_linear_attention_cpu(*given, return_state=True)
    out, after = ours(*given)
    # transformers adds to an exponent near 100 token by token, and rounds it each time.
    torch.testing.assert_close(out, expected, atol=1e-4 if shift else 1e-5, rtol=1e-5)
    numerator, denominator, scale = (each.detach() for each in state)
    sums = after[:2] * (after[2] - scale).exp()
    torch.testing.assert_close(sums, torch.stack((numerator, denominator)), atol=1e-4, rtol=1e-4)
    for name, mine, theirs in zip(
        ("decay", "bonus", "key", "value"),
        torch.autograd.grad((out * weights).sum(), given),
        torch.autograd.grad((expected * weights).sum(), given),
        strict=True,
    ):
        assert (mine - theirs).norm() <= 1e-4 * theirs.norm() + 1e-7, name


def test_chunks_with_the_state_between_equal_the_whole(form):
    logarithm, bonus, key, value = (each.detach() for each in operands())
    whole, last = ours(logarithm, bonus, key, value)
    state, parts = empty_state(BATCH, CHANNELS, CPU), []
    for part in (slice(0, 20), slice(20, 21), slice(21, 37)):
        out, state = wkv(logarithm.exp(), bonus, key[:, part], value[:, part], state)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(state[:2] * state[2].exp(), last[:2] * last[2].exp(), atol=1e-6, rtol=1e-5)


def test_what_has_no_weight_changes_nothing(form):
    logarithm, bonus, key, value = (each.detach() for each in operands())
    whole, _ = ours(logarithm, bonus, key[:, 5:], value[:, 5:])
    padded = key.clone()
    padded[:, :5] = module.LOWEST
    found, _ = ours(logarithm, bonus, padded, value)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[:, 5:], whole)


def test_the_gradient_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(2)
    draw = dict(dtype=torch.float64, generator=generator)
    given = [
        torch.rand(5, **draw),
        torch.randn(5, **draw),
        torch.randn(2, 20, 5, **draw),
        torch.randn(2, 20, 5, **draw),
    ]
    state = empty_state(2, 5, CPU).double()
    torch.autograd.gradcheck(
        lambda *operands: wkv(*operands, state)[0], [each.requires_grad_() for each in given], fast_mode=True
    )
