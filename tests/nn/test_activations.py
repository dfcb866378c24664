import pytest
import torch
from transformers.activations import ACT2FN

from nbllm.nn.activations import ACTIVATIONS


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_is_what_transformers_calls_by_its_names(name):
    x = torch.linspace(-8, 8, 5001, requires_grad=True)
    got = ACTIVATIONS[name].function(x)
    grad = torch.autograd.grad(got.sum(), x)[0]
    for theirs in ACTIVATIONS[name].transformers_names:
        expected = ACT2FN[theirs](x)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), x)[0], atol=1e-4, rtol=1e-4)
