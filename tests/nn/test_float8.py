"""Linear layers in float8 compute what the rounded operands give, forward and backward."""

from __future__ import annotations

import pytest
import torch

from nbllm.core.errors import UserError
from nbllm.distributed import OneRank, Plan, lay_out
from nbllm.models import build, make_config
from nbllm.nn.float8 import BACKWARD, FORWARD, Float8Linear, check_float8, multiply_in_float8
from nbllm.nn.linear import Linear
from nbllm.objectives import CausalLM


def rounded(x, dtype):
    """Return what is left of x in float8, scaled to its largest element."""
    scale = x.abs().max() / torch.finfo(dtype).max
    return (x / scale).to(dtype).float() * scale


@pytest.mark.parametrize("rows", [48, 5])
def test_results_and_gradients_are_those_of_rounded_operands(rows):
    torch.manual_seed(0)
    layer = Linear(64, 32)
    assert multiply_in_float8(layer) == 1 and type(layer) is Float8Linear
    x = torch.randn(rows, 64, requires_grad=True)
    grad = torch.randn(rows, 32)
    out = layer(x)
    out.backward(grad)
    inputs, weight = rounded(x.detach(), FORWARD), rounded(layer.weight.detach(), FORWARD)
    torch.testing.assert_close(out, inputs @ weight.T + layer.bias, rtol=1e-4, atol=1e-4)
    coming = rounded(grad, BACKWARD)
    torch.testing.assert_close(x.grad, coming @ weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.weight.grad, coming.T @ inputs, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(layer.bias.grad, grad.sum(0))


def test_layers_of_other_sizes_stay_as_they_are():
    layers = torch.nn.Sequential(Linear(64, 24), torch.nn.Linear(64, 64))
    assert multiply_in_float8(layers) == 0


def test_a_network_in_float8_has_about_the_loss_and_gradients_of_bfloat16():
    shape = {"vocab_size": 96, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_positions": 32}
    tokens = torch.randint(96, (2, 33), generator=torch.Generator().manual_seed(0))
    batch, objective = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:].contiguous()}, CausalLM()
    losses, gradients = [], []
    for precision in ("bfloat16", "float8"):
        network = build(make_config("gpt2", **shape, initializer_range=0.1), seed=1)
        layout = lay_out(network, Plan(precision=precision), OneRank(), dtype=torch.bfloat16)
        loss, count = layout.forward_backward([batch], lambda net, b: (*objective.loss(net, b), None), 64.0)
        losses.append(loss / count)
        gradients.append(torch.cat([p.grad.flatten() for p in layout.parameters().values()]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    cosine = torch.nn.functional.cosine_similarity(*gradients, dim=0)
    assert 0.97 < float(cosine) < 1 - 1e-5  # and it is not bfloat16


def test_a_device_without_it_is_refused_with_the_reason(monkeypatch):
    check_float8("cpu")

    def lacks(*operands):
        raise RuntimeError("needs compute capability 8.9\nand more lines")

    monkeypatch.setattr("nbllm.nn.float8._multiply", lacks)
    with pytest.raises(UserError, match="float8 on '(cuda|cpu)': needs compute capability 8.9") as error:
        check_float8("cuda" if torch.cuda.is_available() else "cpu")
    assert "and more lines" not in str(error.value)
