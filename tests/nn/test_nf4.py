"""NF4 against its published derivation, a search over all codes, and the ordinary layer with the same weights."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from nbllm.core.errors import UserError
from nbllm.nn.linear import Linear
from nbllm.nn.nf4 import GROUP, VALUES, dequantize, quantize
from nbllm.nn.nf4_linear import NF4Linear, hold_in_nf4, release_from_nf4


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02


def test_the_codes_are_the_quantiles_of_the_paper():
    """Dettmers et al. 2023, section 3 and appendix E: 8 quantiles above 0, 7 below, and 0, between -1 and 1."""
    offset = (1 - 1 / 30 + 1 - 1 / 32) / 2
    above = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    table = np.sort(np.concatenate((above, [0.0], below)))
    np.testing.assert_allclose(VALUES, table / table.max(), atol=1e-6)


@pytest.mark.parametrize("shape", [(7, 33), (64,), (128, 130)])
def test_each_weight_gets_the_nearest_code_of_its_block(shape):
    weight = drawn(*shape)
    found = dequantize(
        quantize(weight, block_size=64, double=False), shape, block_size=64, dtype=torch.float32
    )
    flat = weight.flatten().numpy()
    for begin in range(0, len(flat), 64):
        block = flat[begin : begin + 64]
        levels = np.abs(block).max() * np.array(VALUES, np.float32)
        nearest = np.abs(block[:, None] - levels[None]).min(1)
        error = np.abs(block - found.flatten().numpy()[begin : begin + 64])
        np.testing.assert_allclose(error, nearest, atol=1e-8)


def test_error_and_memory():
    """Of normal weights: nearer than 4-bit integers; 4.5 bits, and with double quantization 4.127, hardly less near."""
    weight = drawn(512, 512)
    errors, bits = {}, {}
    for double in (False, True):
        held = quantize(weight, block_size=64, double=double)
        found = dequantize(held, weight.shape, block_size=64, dtype=torch.float32)
        errors[double] = float((found - weight).square().mean().sqrt() / weight.square().mean().sqrt())
        tensors = (held.codes, held.scales, held.group_scales)
        bits[double] = 8 * sum(tensor.nbytes for tensor in tensors) / weight.numel()
    blocks = weight.view(-1, 64)
    step = blocks.abs().amax(1, keepdim=True) / 7
    integers = float(
        ((blocks / step).round() * step - blocks).square().mean().sqrt() / weight.square().mean().sqrt()
    )
    assert 0.08 < errors[False] < 0.1 < integers
    assert errors[True] == pytest.approx(errors[False], rel=0.01)
    assert bits[False] == 4.5 and bits[True] == pytest.approx(4 + 8 / 64 + 32 / (64 * GROUP), abs=1e-3)


def test_of_what_was_quantized_nothing_changes():
    """All codes stay where they are, so that a model saved with the values that it has in 4 bits is the same."""
    weight = drawn(32, 64)
    once = quantize(weight, block_size=64, double=False)
    values = dequantize(once, weight.shape, block_size=64, dtype=torch.float32)
    again = quantize(values, block_size=64, double=False)
    assert torch.equal(once.codes, again.codes) and torch.equal(once.scales, again.scales)
    zero = quantize(torch.zeros(3, 5), block_size=4, double=True)
    assert not dequantize(zero, (3, 5), block_size=4, dtype=torch.float32).any()


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_multiplies_by_the_values_of_its_codes(bias):
    torch.manual_seed(0)
    layer = Linear(48, 20, bias=bias)
    hold_in_nf4(layer, block_size=32, double=True)
    assert type(layer) is NF4Linear and layer.weight.shape == (20, 48) and "NF4" in repr(layer)
    assert [name for name, _ in layer.named_parameters()] == (["bias"] if bias else [])
    plain = Linear(48, 20, bias=bias)
    plain.load_state_dict({"weight": layer.weight, **({"bias": layer.bias} if bias else {})})
    x = torch.randn(3, 5, 48, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    for each, given in ((layer, x), (plain, other)):
        each(given).square().sum().backward()
    torch.testing.assert_close(layer(x), plain(other), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(x.grad, other.grad, atol=1e-5, rtol=1e-5)
    if bias:
        torch.testing.assert_close(layer.bias.grad, plain.bias.grad)

    weight = layer.weight
    layer.bfloat16().float()
    assert torch.equal(layer.weight, weight)  # neither codes nor scales were rounded
    assert layer.bfloat16().weight.dtype == torch.bfloat16
    layer.float()
    release_from_nf4(layer)
    assert type(layer) is Linear and torch.equal(layer.weight, weight) and layer.weight.requires_grad


def test_what_cannot_be_quantized_is_refused():
    layer = Linear(4, 4)
    with pytest.raises(UserError, match="even number"):
        hold_in_nf4(layer, block_size=3, double=False)
    layer.weight.data[0, 0] = math.nan
    with pytest.raises(UserError, match="not finite"):
        hold_in_nf4(layer, block_size=4, double=False)
    assert type(layer) is Linear
