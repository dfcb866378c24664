import pytest
import torch
import torch.nn.functional as F

from nbllm.nn import kernels
from nbllm.nn.compute.decisions import use_choices
from nbllm.nn.feed_forward import FeedForward
from nbllm.nn.fused_feed_forward import gelu_feed_forward, swiglu

from .conftest import ALL_KERNELS


@pytest.fixture(autouse=True)
def every_size(monkeypatch):
    monkeypatch.setattr(kernels, "FEWEST", 0)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain_gelu(x, up, up_bias, down, down_bias):
    return F.linear(F.gelu(F.linear(x, up, up_bias), approximate="tanh"), down, down_bias)


def plain_swiglu(x):
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


def assert_equal_in_float64(function, reference, inputs):
    """Compare result and gradients with the reference in float64."""
    narrow = [x.clone().requires_grad_() for x in inputs]
    wide = [x.double().requires_grad_() for x in inputs]
    out, expected = function(*narrow), reference(*wide)
    grad = drawn(*out.shape, seed=9)
    got = [out, *torch.autograd.grad(out, narrow, grad)]
    wanted = [expected, *torch.autograd.grad(expected, wide, grad.double())]
    for one, other in zip(got, wanted, strict=True):
        scale = float(other.detach().abs().max()) + 1e-30
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=2e-6 * scale)


def drawn_parameters(width, inner, out):
    return (
        drawn(inner, width, seed=1), drawn(inner, seed=2), drawn(out, inner, seed=3), drawn(out, seed=4),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "width", "inner", "out"),
    [(1, 1, 1, 1), (1, 5, 7, 2), (3, 8, 33, 8), (130, 16, 48, 16), (300, 3, 130, 5)],
)
def test_gelu_feed_forward_and_its_gradients(rows, width, inner, out):
    inputs = [3 * drawn(rows, width), *drawn_parameters(width, inner, out)]
    assert_equal_in_float64(gelu_feed_forward, plain_gelu, inputs)


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 37), (65, 24), (200, 7)])
def test_swiglu_and_its_gradient(rows, width):
    assert_equal_in_float64(swiglu, plain_swiglu, [4 * drawn(2, rows, 2 * width)])


def assert_near_in_bfloat16(function, reference, inputs):
    """Compare result and gradients of bfloat16 inputs with the reference in float64: about as near as torch's own.

    The derivative is kept in bfloat16 between both passes: one rounding more.
    """
    half = [x.bfloat16().requires_grad_() for x in inputs]
    wide = [x.detach().double().requires_grad_() for x in half]
    each = []
    for function_of, given in ((function, half), (reference, half), (reference, wide)):
        out = function_of(*given)
        each.append([out, *torch.autograd.grad(out, given, drawn(*out.shape, seed=9).to(out.dtype))])
    for ours, torchs, exact in zip(*each, strict=True):
        assert ours.dtype == torch.bfloat16
        norm = float(exact.detach().norm())
        distances = [float((found.double() - exact).detach().norm()) / norm for found in (ours, torchs)]
        assert distances[0] < max(1.6 * distances[1], 0.003), distances


@pytest.mark.usefixtures("any_matmul")
def test_gelu_feed_forward_in_bfloat16():
    inputs = [3 * drawn(130, 16), *drawn_parameters(16, 48, 16)]
    assert_near_in_bfloat16(gelu_feed_forward, plain_gelu, inputs)


def test_swiglu_in_bfloat16():
    assert_near_in_bfloat16(swiglu, plain_swiglu, [4 * drawn(2, 65, 48)])


def test_bfloat16_kernels_where_they_are_chosen_alone():
    x = drawn(70, 6).bfloat16()
    for fused in ((), ("float32",), ("bfloat16",), ("float32", "bfloat16")):
        with use_choices(ALL_KERNELS.replace(fused_kernels=fused)):
            assert (swiglu(x) is not None) == ("bfloat16" in fused)
            assert (swiglu(x.float()) is not None) == ("float32" in fused)
    assert gelu_feed_forward(x, x.float(), None, x.float().t(), None) is None, "two dtypes are torch's"


def test_no_bias_and_frozen_parameters():
    x, (up, up_bias, down, down_bias) = drawn(70, 6).requires_grad_(), drawn_parameters(6, 9, 4)
    out = gelu_feed_forward(x, up, None, down, None)
    torch.testing.assert_close(out, plain_gelu(x, up, None, down, None))
    out.sum().backward()
    assert x.grad is not None and up.grad is None and down.grad is None
    for learned in (up, up_bias, down, down_bias):
        learned.requires_grad_()
        gelu_feed_forward(x.detach(), up, up_bias, down, down_bias).sum().backward()
        plain = plain_gelu(x.detach(), up, up_bias, down, down_bias).sum()
        torch.testing.assert_close(learned.grad, torch.autograd.grad(plain, learned)[0])
        learned.requires_grad_(False)
    with torch.no_grad():
        assert gelu_feed_forward(x, up, up_bias, down, down_bias).grad_fn is None


def test_far_from_zero_and_not_finite_are_as_in_torch():
    x = torch.tensor([[-1e30, -1e4, -30.0, -8.0, -0.0, 0.0, 8.0, 30.0, 1e4, 1e30, torch.inf, torch.nan]])
    eye, none = torch.ones(1, 1), torch.zeros(1)
    column = x.t().contiguous().requires_grad_()
    out = gelu_feed_forward(column, eye, none, eye, none)
    torch.testing.assert_close(out, F.gelu(column, approximate="tanh"), equal_nan=True)
    slope = torch.autograd.grad(out, column, torch.ones_like(out))[0].squeeze()
    torch.testing.assert_close(slope[:10], torch.tensor([0.0] * 4 + [0.5] * 2 + [1.0] * 4), atol=1e-6, rtol=0)
    assert slope[-1].isnan()
    both = torch.cat([column.detach(), torch.ones_like(column)], dim=-1)
    torch.testing.assert_close(swiglu(both), plain_swiglu(both), equal_nan=True)


def test_inputs_that_are_not_contiguous():
    up, up_bias, down, down_bias = drawn(6, 9).t(), drawn(18)[::2], drawn(9, 4).t(), drawn(8)[::2]
    x, parameters = drawn(6, 80).t(), (up, up_bias, down, down_bias)
    torch.testing.assert_close(gelu_feed_forward(x, *parameters), plain_gelu(x, *parameters))
    assert_equal_in_float64(lambda x: swiglu(x.t()), lambda x: plain_swiglu(x.t()), [drawn(10, 70)])
    # A gradient of one number, spread out.
    x = drawn(70, 6).requires_grad_()
    grad_x = torch.autograd.grad(gelu_feed_forward(x, *parameters).sum(), x)[0]
    torch.testing.assert_close(grad_x, torch.autograd.grad(plain_gelu(x, *parameters).sum(), x)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_are_left_to_torch(dtype):
    x = drawn(70, 6).to(dtype)
    assert gelu_feed_forward(x, x, None, x.t(), None) is None and swiglu(x) is None


def test_autocast_and_few_elements_are_left_to_torch(monkeypatch):
    x = drawn(70, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert swiglu(x) is None
    monkeypatch.setattr(kernels, "FEWEST", 1000)
    assert swiglu(x) is None and gelu_feed_forward(x, x, None, x.t(), None) is not None


@pytest.mark.parametrize(("activation", "gated", "bias"), [("gelu_tanh", False, True), ("silu", True, False)])
def test_the_module_gives_the_same_with_and_without_kernels(monkeypatch, activation, gated, bias):
    module = FeedForward(8, 24, activation=activation, gated=gated, bias=bias)
    x = drawn(2, 50, 8).requires_grad_()
    results = []
    for fewest in (0, 1 << 60):
        monkeypatch.setattr(kernels, "FEWEST", fewest)
        out = module(x)
        results.append((out, *torch.autograd.grad(out.square().sum(), [x, *module.parameters()])))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "width"), [("up", 24), ("down", 8)])
def test_a_hook_on_a_projection_is_called(name, width):
    module, seen = FeedForward(8, 24, activation="gelu_tanh", gated=False, bias=True), []
    getattr(module, name).register_forward_hook(lambda *arguments: seen.append(arguments[2].shape))
    module(drawn(1, 70, 8))
    assert seen == [(1, 70, width)]


def test_a_kept_graph_gives_the_same_gradient_twice():
    x = drawn(70, 6).requires_grad_()
    out = gelu_feed_forward(x, *drawn_parameters(6, 9, 4)).sum()
    first, second = (torch.autograd.grad(out, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_without_kernels_torch_does_the_work(monkeypatch):
    monkeypatch.setattr(kernels, "compiled", lambda name: None)
    module = FeedForward(8, 24, activation="gelu_tanh", gated=False, bias=True)
    x = drawn(1, 70, 8)
    expected = plain_gelu(x, module.up.weight, module.up.bias, module.down.weight, module.down.bias)
    torch.testing.assert_close(module(x), expected)
