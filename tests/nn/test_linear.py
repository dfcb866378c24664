import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nbllm.nn.compute.decisions import PLAIN, use_choices
from nbllm.nn.linear import Linear, linear


def problem(rows=(2, 40), inputs=6, outputs=9, bias=True, dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    shapes = [(*rows, inputs), (outputs, inputs), (outputs,)][: 3 if bias else 2]
    return [torch.randn(*shape, generator=draw).to(dtype).requires_grad_() for shape in shapes]


def forward_backward(function, tensors):
    out = function(*tensors)
    grad = torch.randn(*out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out, *torch.autograd.grad(out, tensors, grad)]


@pytest.mark.usefixtures("any_matmul")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(3,), (80,), (2, 40), (2, 3, 40), (0,)])
def test_it_equals_torch(rows, bias):
    tensors = problem(rows, bias=bias)
    for got, expected in zip(
        forward_backward(linear, tensors), forward_backward(F.linear, tensors), strict=True
    ):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_an_input_that_is_not_contiguous():
    x, weight, bias = problem((40, 2))
    transposed = x.transpose(0, 1)
    torch.testing.assert_close(linear(transposed, weight, bias), F.linear(transposed, weight, bias))


@pytest.mark.usefixtures("any_matmul")
def test_bfloat16_in_either_kind_of_matmul():
    tensors = problem(dtype=torch.bfloat16)
    exact = [tensor.detach().float().requires_grad_() for tensor in tensors]
    for got, expected in zip(
        forward_backward(linear, tensors), forward_backward(F.linear, exact), strict=True
    ):
        assert got.dtype == torch.bfloat16
        assert (got.float() - expected).norm() < 0.01 * expected.norm()


def test_only_the_gradients_that_are_wanted():
    x, weight, bias = problem()
    weight.requires_grad_(False)
    linear(x, weight, bias).sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(bias.grad, torch.full((9,), 80.0))


def test_it_can_be_differentiated_twice():
    tensors = [tensor.detach().double().requires_grad_() for tensor in problem((64,), 2, 3)]
    assert torch.autograd.gradgradcheck(linear, tensors, fast_mode=True)


def test_gradients_of_gradients_do_not_stop_at_onednn(all_kernels):
    with use_choices(PLAIN.replace(onednn_matmuls_from=1)):
        x, weight, _ = problem()
        (grad,) = torch.autograd.grad(linear(x, weight).square().sum(), x, create_graph=True)
        got = torch.autograd.grad(grad.square().sum(), weight)[0]
    (grad,) = torch.autograd.grad(F.linear(x, weight).square().sum(), x, create_graph=True)
    expected = torch.autograd.grad(grad.square().sum(), weight)[0]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-2)


def test_autocast_decides_the_dtype():
    x, weight, bias = problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16


def test_the_layer_is_torchs_layer():
    torch.manual_seed(0)
    layer, reference = Linear(6, 9), nn.Linear(6, 9)
    assert isinstance(layer, nn.Linear)
    layer.load_state_dict(reference.state_dict())
    x = problem()[0]
    torch.testing.assert_close(layer(x), reference(x))
