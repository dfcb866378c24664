import pytest
import torch
from transformers.activations import ACT2FN

from nbllm.models.families.base import ACTIVATION_NAMES
from nbllm.nn.activations import ACTIVATIONS
from nbllm.nn.feed_forward import FeedForward


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_equal_those_transformers_calls_so(name):
    x = torch.linspace(-6, 6, 101)
    torch.testing.assert_close(
        ACTIVATIONS[name].function(x), ACT2FN[ACTIVATION_NAMES[name]](x), atol=1e-6, rtol=1e-5
    )


def test_a_gated_part_multiplies_by_the_activated_gate():
    part = FeedForward(4, 6, activation="silu", gated=True, bias=False)
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    gate = torch.nn.functional.silu(x @ part.gate.weight.T)
    expected = (gate * (x @ part.up.weight.T)) @ part.down.weight.T
    torch.testing.assert_close(part(x), expected)
