import pytest
import torch
from transformers.activations import ACT2FN

from nbllm.models.families.base import ACTIVATION_NAMES
from nbllm.nn.feed_forward import ACTIVATIONS, FeedForward


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_equal_those_transformers_calls_so(name):
    x = torch.linspace(-6, 6, 101)
    torch.testing.assert_close(ACTIVATIONS[name](x), ACT2FN[ACTIVATION_NAMES[name]](x), atol=1e-6, rtol=1e-5)


def test_the_first_half_of_the_fused_matrix_is_the_gate():
    part = FeedForward(4, 6, activation="silu", gated=True, bias=False)
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    gate, up = part.up.weight[:6], part.up.weight[6:]
    expected = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ part.down.weight.T
    torch.testing.assert_close(part(x), expected)
