import pytest
import torch
import torch.nn.functional as F

from nbllm.nn import gelu
from nbllm.nn.gelu import gelu_tanh


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(gelu, "_FEWEST", 0)
    monkeypatch.setattr(gelu, "_BLOCK", 37)


def both(x, grad):
    results = []
    for function in (gelu_tanh, lambda x: F.gelu(x, approximate="tanh")):
        out = function(x)
        results.append((out, torch.autograd.grad(out, x, grad)[0]))
    return zip(*results, strict=True)


@pytest.mark.parametrize("shape", [(1,), (37,), (10, 37), (3, 50, 7)])
def test_it_equals_torch(shape):
    draw = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(*shape, generator=draw)).requires_grad_()
    for got, expected in both(x, torch.randn(*shape, generator=draw)):
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)


def test_far_from_zero():
    x = torch.tensor([-1e4, -30.0, -8.0, -0.0, 0.0, 8.0, 30.0, 1e4], requires_grad=True)
    for got, expected in both(x, torch.ones(8)):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


def test_nan_and_infinity_stay_visible():
    got = gelu_tanh(torch.tensor([torch.nan, torch.inf, 1.0]))
    assert got[0].isnan() and got[1] == torch.inf and got[2].isfinite()


def test_the_derivative_is_that_of_the_function():
    x = torch.randn(90, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(gelu_tanh, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32_and_rounded_once(dtype):
    x = torch.linspace(-5, 5, 500).to(dtype).requires_grad_()
    wide = x.detach().double().requires_grad_()
    expected = F.gelu(wide, approximate="tanh")
    out = gelu_tanh(x)
    slope = torch.autograd.grad(out, x, torch.ones_like(out))[0]
    ulp = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), expected, rtol=0.501 * ulp, atol=1e-7)
    wanted = torch.autograd.grad(expected, wide, torch.ones_like(expected))[0]
    torch.testing.assert_close(slope.double(), wanted, rtol=0.501 * ulp, atol=1e-6)


def test_an_input_that_is_not_contiguous_is_left_as_it_is():
    x = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    torch.testing.assert_close(gelu_tanh(x.t()), F.gelu(x.t(), approximate="tanh"))
    assert torch.equal(x, before)


def test_nothing_is_kept_without_gradients():
    with torch.no_grad():
        assert gelu_tanh(torch.ones(100, requires_grad=True)).grad_fn is None


def test_second_backward_of_a_kept_graph_is_the_same():
    x = torch.linspace(-3, 3, 100).requires_grad_()
    out = gelu_tanh(x).sum()
    first, second = (torch.autograd.grad(out, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
