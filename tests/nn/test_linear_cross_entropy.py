import sys

import pytest
import torch
import torch.nn.functional as F

from nbllm.core.errors import UserError
from nbllm.nn.linear_cross_entropy import linear_cross_entropy

module = sys.modules["nbllm.nn.linear_cross_entropy"]  # the package's attribute of that name is the function


@pytest.fixture(autouse=True, params=["as on a CPU", "as on a GPU"])
def way(request, monkeypatch):
    """Both ways of making losses and probabilities of logits."""
    if request.param == "as on a GPU":
        monkeypatch.setattr(
            module,
            "_softmax_and_loss",
            lambda _, __, places, buffer: module._exact_softmax_and_loss(places, buffer),
        )


def problem(tokens=37, hidden=16, vocabulary=29, dtype=torch.float32, scale=1.0):
    draw = torch.Generator().manual_seed(0)
    return (
        (torch.randn(tokens, hidden, generator=draw) * scale).to(dtype).requires_grad_(),
        torch.randn(vocabulary, hidden, generator=draw).to(dtype).requires_grad_(),
        torch.randint(0, vocabulary, (tokens,), generator=draw),
    )


def reference(hidden, weight, targets, ignore_index=-100):
    return F.cross_entropy(hidden @ weight.t(), targets, reduction="sum", ignore_index=ignore_index)


@pytest.mark.usefixtures("any_matmul")
@pytest.mark.parametrize("chunk", [1, 5, 36, 37, 1000, None])
def test_loss_and_gradients_equal_cross_entropy(chunk):
    hidden, weight, targets = problem()
    expected = reference(hidden, weight, targets)
    got = linear_cross_entropy(hidden, weight, targets, chunk=chunk)
    torch.testing.assert_close(got, expected)
    pairs = [torch.autograd.grad(loss / 37, (hidden, weight)) for loss in (expected, got)]
    for want, have in zip(*pairs, strict=True):
        torch.testing.assert_close(have, want, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("chunk", [5, None])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_bounded_logits(chunk, scale):
    hidden, weight, targets = problem(scale=scale)
    bias = torch.randn(29, generator=torch.Generator().manual_seed(3)).requires_grad_()
    targets[3] = -100
    logits = torch.tanh((hidden @ weight.t() + bias) / 2.5) * 2.5
    expected = F.cross_entropy(logits, targets, reduction="sum")
    got = linear_cross_entropy(hidden, weight, targets, bias=bias, softcap=2.5, chunk=chunk)
    torch.testing.assert_close(got, expected)
    pairs = [torch.autograd.grad(loss / 37, (hidden, weight, bias)) for loss in (expected, got)]
    for want, have in zip(*pairs, strict=True):
        torch.testing.assert_close(have, want, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("ignored", [slice(0, 12), slice(10, 11), slice(None)])
def test_ignored_rows_count_nothing(ignored):
    hidden, weight, targets = problem()
    targets[ignored] = -100
    expected = reference(hidden, weight, targets)
    got = linear_cross_entropy(hidden, weight, targets, chunk=8)
    torch.testing.assert_close(got, expected)
    pairs = [torch.autograd.grad(loss, (hidden, weight)) for loss in (expected, got)]
    for want, have in zip(*pairs, strict=True):
        torch.testing.assert_close(have, want, atol=1e-5, rtol=1e-4)
    assert not pairs[1][0][ignored].any()


def test_another_ignore_index():
    hidden, weight, targets = problem()
    expected = reference(hidden, weight, targets, ignore_index=3)
    torch.testing.assert_close(linear_cross_entropy(hidden, weight, targets, ignore_index=3), expected)


def test_a_target_that_seems_impossible_has_a_finite_loss():
    # exp(-400) is 0 in float32: the logarithm of the probability would be -inf.
    hidden, weight, targets = problem(scale=100.0)
    expected = reference(hidden.double(), weight.double(), targets)
    got = linear_cross_entropy(hidden, weight, targets, chunk=8)
    assert expected / 37 > 200
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.usefixtures("any_matmul")
def test_bfloat16_in_either_kind_of_matmul():
    hidden, weight, targets = problem(tokens=200, dtype=torch.bfloat16)
    exact = reference(hidden.float(), weight.float(), targets)
    got = linear_cross_entropy(hidden, weight, targets, chunk=64)
    assert got.dtype == torch.float32
    assert abs(got - exact) < 0.01 * exact
    wanted = torch.autograd.grad(exact, (hidden, weight))
    for want, have in zip(wanted, torch.autograd.grad(got, (hidden, weight)), strict=True):
        assert have.dtype == torch.bfloat16
        assert (have - want).norm() < 0.02 * want.norm()


def test_no_tokens_and_no_gradients():
    hidden, weight, targets = problem()
    empty = linear_cross_entropy(hidden[:0], weight, targets[:0])
    assert empty == 0
    assert not torch.autograd.grad(empty, weight)[0].any()
    with torch.no_grad():
        plain = linear_cross_entropy(hidden, weight, targets)
    assert plain.grad_fn is None
    torch.testing.assert_close(plain, reference(hidden, weight, targets).detach())


def test_one_gradient_alone():
    hidden, weight, targets = problem()
    expected = torch.autograd.grad(reference(hidden, weight, targets), hidden)[0]
    weight.requires_grad_(False)
    got = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets), hidden)[0]
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)


def test_second_backward_of_a_kept_graph_is_the_same():
    hidden, weight, targets = problem()
    loss = linear_cross_entropy(hidden, weight, targets)
    first, second = (torch.autograd.grad(loss / 7, weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_nan_stays_visible():
    hidden, weight, targets = problem()
    with torch.no_grad():
        hidden[5, 0] = torch.nan
    loss = linear_cross_entropy(hidden, weight, targets, chunk=8)
    assert loss.isnan()
    grad = torch.autograd.grad(loss, hidden)[0]
    assert grad[5].isnan().all() and grad[6].isfinite().all()


@pytest.mark.parametrize("bad", [29, -1])
def test_a_target_outside_the_vocabulary_is_named(bad):
    hidden, weight, targets = problem()
    targets[4] = bad
    with pytest.raises(UserError, match=rf"{bad} is not a token of this vocabulary of 29(.|\n)*number 4"):
        linear_cross_entropy(hidden, weight, targets)


def test_logits_of_all_tokens_are_never_held(monkeypatch):
    biggest = 0
    original = torch.empty

    def watch(*shape, **options):
        nonlocal biggest
        out = original(*shape, **options)
        biggest = max(biggest, out.numel())
        return out

    monkeypatch.setattr(torch, "empty", watch)
    hidden, weight, targets = problem(tokens=4096, vocabulary=512)
    linear_cross_entropy(hidden, weight, targets)
    assert biggest == 1024 * 512


@pytest.mark.usefixtures("any_matmul")
@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_with_a_bias(chunk, scale):
    hidden, weight, targets = problem(scale=scale)
    bias = torch.linspace(-3, 3, 29).requires_grad_()
    targets[3:6] = -100
    expected = F.cross_entropy(hidden @ weight.t() + bias, targets, reduction="sum")
    got = linear_cross_entropy(hidden, weight, targets, bias=bias, chunk=chunk)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
    pairs = [torch.autograd.grad(loss, (hidden, weight, bias)) for loss in (expected, got)]
    for want, have in zip(*pairs, strict=True):
        torch.testing.assert_close(have, want, atol=1e-4 * scale, rtol=1e-4)
