import pytest
import torch

from nbllm.nn.linear_log_probabilities import linear_log_probabilities


def problem(dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 16, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(29, 16, generator=draw).to(dtype).requires_grad_()
    bias = torch.randn(29, generator=draw).requires_grad_()
    return hidden, weight, bias, torch.randint(0, 29, (37,), generator=draw)


@pytest.mark.usefixtures("any_matmul")
@pytest.mark.parametrize("chunk", [1, 5, 37, None])
@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, 0.0), (0.7, 0.0), (1.3, 2.5)])
def test_log_probabilities_entropies_and_gradients_equal_those_of_log_softmax(chunk, temperature, softcap):
    hidden, weight, bias, tokens = problem()
    logits = hidden @ weight.t() + bias
    logits = (torch.tanh(logits / softcap) * softcap if softcap else logits) / temperature
    every = logits.log_softmax(-1)
    expected = every.gather(1, tokens[:, None])[:, 0]
    got, entropies = linear_log_probabilities(
        hidden, weight, tokens, bias=bias, softcap=softcap, temperature=temperature, chunk=chunk
    )
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(entropies, -(every.exp() * every).sum(-1).detach())
    assert not entropies.requires_grad
    # A loss that is no sum of the logarithms, as those of clipped ratios.
    pairs = [
        torch.autograd.grad((each.exp() * torch.arange(37)).sum(), (hidden, weight, bias))
        for each in (expected, got)
    ]
    for want, have in zip(*pairs, strict=True):
        torch.testing.assert_close(have, want, atol=1e-5, rtol=1e-4)


def test_only_the_gradients_that_are_wanted_are_made():
    hidden, weight, _, tokens = problem()
    weight.requires_grad_(False)
    got, _ = linear_log_probabilities(hidden, weight, tokens)
    got.sum().backward()
    assert weight.grad is None and hidden.grad is not None


def test_no_rows():
    hidden, weight, _, tokens = problem()
    got, entropies = linear_log_probabilities(hidden[:0], weight, tokens[:0])
    assert got.shape == entropies.shape == (0,)
    got.sum().backward()
