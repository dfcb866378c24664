"""Transformer-XL's relative positions against the equation of their paper, term by term."""

import math

import pytest
import torch

from nbllm.models.config import ModelConfig
from nbllm.models.network import build
from nbllm.nn.attention import Attention, AttentionContext, AttentionShape
from nbllm.nn.positions import Places, TransformerXLPositions

HIDDEN, HEADS, SIZE, LAYERS, BATCH, LENGTH = 12, 3, 4, 2, 2, 9


def scheme(causal):
    made = TransformerXLPositions(HIDDEN, HEADS, SIZE, LAYERS, causal=causal)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in made.parameters():
            weight.normal_(generator=generator)
    return made


def wave(distance):
    """R of one distance: sines and cosines by turns (Vaswani et al. 2017, section 3.5)."""
    angles = [distance / 10000 ** (2 * i / HIDDEN) for i in range(HIDDEN // 2)]
    return torch.tensor([turn(angle) for angle in angles for turn in (math.sin, math.cos)])


def paper(made, layer, query, key, value, causal):
    """The four terms of equation A_rel in section 3.3, of each pair of query and key; then the softmax of each row."""
    out = torch.zeros_like(query)
    for row in range(len(query)):
        for head in range(HEADS):
            matrix = made.relative[layer].weight.unflatten(0, (HEADS, SIZE))[head]
            u, v = made.content_bias[head], made.position_bias[head]
            for i in range(LENGTH):
                keys = range(i + 1 if causal else LENGTH)
                scores = []
                for j in keys:
                    q, k, relative = query[row, head, i], key[row, head, j], matrix @ wave(i - j)
                    scores.append(q @ k + q @ relative + u @ k + v @ relative)
                weights = (torch.stack(scores) / math.sqrt(SIZE)).softmax(0)
                out[row, head, i] = sum(
                    weight * value[row, head, j] for weight, j in zip(weights, keys, strict=True)
                )
    return out


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("layer", range(LAYERS))
def test_attention_is_that_of_the_papers_equation(causal, layer):
    made = scheme(causal)
    shape = AttentionShape(
        hidden_size=HIDDEN, num_heads=HEADS, num_kv_heads=HEADS, head_dim=SIZE, bias=False, output_bias=False
    )
    attention = Attention(shape, layer=layer)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, LENGTH, HIDDEN, generator=generator)
    places = Places(slice(0, LENGTH), LENGTH)
    context = AttentionContext(causal=causal, scheme=made, positions=places, key_positions=places)
    query, key, value = (
        part(x).unflatten(-1, (HEADS, SIZE)).transpose(1, 2)
        for part in (attention.query, attention.key, attention.value)
    )
    expected = attention.output(paper(made, layer, query, key, value, causal).transpose(1, 2).flatten(2))
    found = attention(x, context)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    used = [made.content_bias, made.position_bias, made.relative[layer].weight, attention.query.weight]
    grad = torch.randn(found.shape, generator=generator)
    for mine, theirs in zip(
        torch.autograd.grad((found * grad).sum(), used),
        torch.autograd.grad((expected * grad).sum(), used),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
def test_few_queries_take_the_same_scores_in_another_order(causal):
    """One query for many keys, as in generation, and positions of each row's own."""
    made = scheme(causal)
    query = torch.randn(BATCH, HEADS, 40, SIZE, generator=torch.Generator().manual_seed(1))
    keys = Places(torch.stack((torch.arange(40), torch.arange(40).clamp(min=3) - 3)), 40)
    whole = made.score(0, query, keys, keys)
    for place in (0, 17, 39):
        last = Places(keys.ids[:, place : place + 1], 40)
        one = made.score(0, query[:, :, place : place + 1], last, keys)
        torch.testing.assert_close(one, whole[:, :, place : place + 1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("network", ["decoder", "prefix_decoder", "encoder", "encoder_decoder"])
def test_every_transformer_takes_them(network):
    """And each of their parameters learns."""
    more = {"tie_embeddings": True, "num_decoder_layers": 3 if network == "encoder_decoder" else 0}
    config = ModelConfig(
        family="any", network=network, positions="transformer_xl", vocab_size=50, hidden_size=16, num_layers=2,
        num_heads=2, max_positions=32, mask_head=network == "encoder", initializer_range=0.3, **more,
    )  # fmt: skip
    model = build(config)
    ids = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    out = model(ids, ids) if network == "encoder_decoder" else model(ids)
    out.log_softmax(-1)[..., 7].sum().backward()
    for name, weight in model.named_parameters():
        if "positions" in name:
            assert weight.grad is not None and weight.grad.any(), name
