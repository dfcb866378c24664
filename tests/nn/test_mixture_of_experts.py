"""The mixture of experts against transformers' Mixtral: results, gradients and the loss of the experts' loads."""

import pytest
import torch
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func

from nbllm.nn.mixture_of_experts import (
    MixtureOfExperts,
    Routing,
    load_balancing_loss,
    note_padding,
    record_routing,
)


def pair(num_experts=5, experts_per_token=2):
    """Both implementations with the same random weights."""
    config = MixtralConfig(
        hidden_size=16,
        intermediate_size=24,
        num_local_experts=num_experts,
        num_experts_per_tok=experts_per_token,
    )
    theirs = MixtralSparseMoeBlock(config)
    ours = MixtureOfExperts(
        16,
        24,
        num_experts=num_experts,
        experts_per_token=experts_per_token,
        activation="silu",
        gated=True,
        bias=False,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.normal_(0, 0.5, generator=generator)
        ours.router.weight.copy_(theirs.gate.weight)
        for number, expert in enumerate(ours.experts):
            gate, up = theirs.experts.gate_up_proj[number].chunk(2)
            expert.gate.weight.copy_(gate)
            expert.up.weight.copy_(up)
            expert.down.weight.copy_(theirs.experts.down_proj[number])
    return ours, theirs


def drawn(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("num_experts", "experts_per_token"), [(5, 2), (4, 1), (3, 3)])
@pytest.mark.parametrize("tokens", [1, 2, 13])
def test_results_and_gradients_are_mixtrals(num_experts, experts_per_token, tokens):
    """Also where an expert has no token: its gradient is zero, not absent."""
    ours, theirs = pair(num_experts, experts_per_token)
    x, other = (drawn(2, tokens, 16).requires_grad_() for _ in range(2))
    got, expected = ours(x), theirs(other)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    got.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.router.weight.grad, theirs.gate.weight.grad, atol=1e-4, rtol=1e-4)
    for number, expert in enumerate(ours.experts):
        both = torch.cat([expert.gate.weight.grad, expert.up.weight.grad])
        torch.testing.assert_close(both, theirs.experts.gate_up_proj.grad[number], atol=1e-4, rtol=1e-4)
        down = theirs.experts.down_proj.grad[number]
        torch.testing.assert_close(expert.down.weight.grad, down, atol=1e-4, rtol=1e-4)


def test_bfloat16_is_as_near_as_transformers():
    ours, theirs = pair()
    exact = theirs(drawn(2, 13, 16))
    half = drawn(2, 13, 16).bfloat16()
    got, expected = ours.bfloat16()(half), theirs.bfloat16()(half)
    assert got.dtype == torch.bfloat16
    distance, their_distance = ((out.float() - exact).norm() / exact.norm() for out in (got, expected))
    assert distance < 1.2 * their_distance


def logits_of(layers=3, tokens=14, num_experts=5):
    return tuple(drawn(tokens, num_experts, seed=layer).requires_grad_() for layer in range(layers))


def routing_of(logits, experts_per_token, real=None):
    probabilities = [each.softmax(-1) for each in logits]
    chosen = [each.topk(experts_per_token, dim=-1).indices for each in probabilities]
    return Routing(probabilities, chosen, real)


@pytest.mark.parametrize("experts_per_token", [1, 2])
@pytest.mark.parametrize("padding", [0, 3])
def test_the_loss_of_loads_is_transformers(experts_per_token, padding):
    logits, mask = logits_of(), torch.ones(2, 7, dtype=torch.long)
    mask[1, :padding] = 0
    expected = load_balancing_loss_func(logits, 5, experts_per_token, mask if padding else None)
    got = load_balancing_loss(
        routing_of(logits, experts_per_token, mask.bool().flatten() if padding else None)
    )
    torch.testing.assert_close(got, expected)
    for mine, theirs in zip(*(torch.autograd.grad(loss, logits) for loss in (got, expected)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_even_loads_have_a_loss_of_the_experts_of_each_token():
    """transformers' convention; divided by the experts of a token it is Switch's, 1."""
    chosen = torch.tensor([[place % 8, (place + 4) % 8] for place in range(16)])
    even = Routing([torch.full((16, 8), 1 / 8)], [chosen])
    assert float(load_balancing_loss(even)) == pytest.approx(2.0)
    assert float(load_balancing_loss(even)) / 2 == pytest.approx(1.0)


def test_what_is_padding_does_not_matter():
    ours, _ = pair()
    x, mask = drawn(2, 7, 16), torch.ones(2, 7, dtype=torch.long)
    mask[0, :4] = 0
    losses = []
    for fill in (0.0, 9.0):
        with record_routing() as routing:
            note_padding(mask)
            ours(x.masked_fill(~mask.bool()[..., None], fill))
        losses.append(load_balancing_loss(routing).item())
    assert losses[0] == losses[1]


def test_routing_is_kept_only_where_it_is_asked_for():
    ours, _ = pair()
    with record_routing() as routing:
        ours(drawn(2, 7, 16))
    ours(drawn(2, 7, 16))
    assert len(routing.chosen) == 1 and routing.chosen[0].shape == (14, 2)
    with pytest.raises(ValueError, match="no router has chosen"):
        load_balancing_loss(Routing())
