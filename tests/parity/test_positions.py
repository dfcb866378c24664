"""Position schemes against transformers' own code."""

import pytest
import torch
from transformers import T5Config
from transformers.models.bloom.modeling_bloom import _get_alibi_slopes, build_alibi_tensor
from transformers.models.distilbert.modeling_distilbert import create_sinusoidal_embeddings
from transformers.models.t5.modeling_t5 import T5Attention

from nbllm.core.errors import UserError
from nbllm.models.config import ModelConfig
from nbllm.models.network import build
from nbllm.nn.masks import causal_mask
from nbllm.nn.positions import ALiBiPositions, Places, RelativeBuckets, SinusoidalPositions
from nbllm.nn.positions.alibi import slopes
from nbllm.nn.positions.relative_buckets import buckets

CPU = torch.device("cpu")


def counted(length, start=0):
    return Places(slice(start, length), length)


@pytest.mark.parametrize("size", [2, 6, 64])
def test_sinusoidal_positions_are_distilberts(size):
    expected = create_sinusoidal_embeddings(600, size, torch.empty(600, size))
    positions = SinusoidalPositions(size)
    x = torch.randn(2, 600, size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(positions.embed(x, counted(600)), x + expected, atol=1e-6, rtol=0)
    ids = torch.tensor([[599, 3], [0, 7]])
    torch.testing.assert_close(
        positions.embed(x[:, :2], Places(ids, 600)), x[:, :2] + expected[ids], atol=1e-6, rtol=0
    )
    assert positions.limit is None and not list(positions.parameters())
    assert positions.embed(x.bfloat16(), counted(600)).dtype == torch.bfloat16


def test_sinusoidal_positions_of_an_odd_width_are_refused():
    with pytest.raises(UserError, match="a width of 7 is odd"):
        SinusoidalPositions(7)


@pytest.mark.parametrize("num_heads", [1, 2, 8, 12, 16, 20, 71])
def test_slopes_of_alibi_are_blooms(num_heads):
    torch.testing.assert_close(torch.tensor(slopes(num_heads)), _get_alibi_slopes(num_heads, CPU))


def test_slopes_where_the_number_of_heads_is_no_power_of_two():
    powers = [-1, -2, -3, -4, -5, -6, -7, -8, -0.5, -1.5, -2.5, -3.5]
    assert slopes(12) == pytest.approx([2**power for power in powers])


@pytest.mark.parametrize("padding", [0, 3])
def test_alibi_weighs_keys_as_bloom_does(padding):
    """BLOOM adds slope * key position, which is the same to the softmax of each query."""
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[1, :padding] = 0
    places = Places((mask.cumsum(1) - 1).clamp(min=0), 11)
    scores = torch.randn(2, 12, 11, 11, generator=torch.Generator().manual_seed(0))
    hidden = ~(causal_mask(11, 11) & mask.bool()[:, None, None, :])
    theirs = scores + build_alibi_tensor(mask, 12, torch.float32).view(2, 12, 1, 11)
    ours = scores + ALiBiPositions(12).bias(places, places)
    weights = [each.masked_fill(hidden, -1e9).softmax(-1) for each in (ours, theirs)]
    torch.testing.assert_close(weights[0][0], weights[1][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(weights[0][1, :, padding:], weights[1][1, :, padding:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_buckets_are_t5s(causal):
    distances = torch.arange(-3000, 3001)
    expected = T5Attention._relative_position_bucket(distances, bidirectional=not causal)
    assert torch.equal(buckets(distances, causal=causal), expected)
    listed = torch.tensor([-200, -128, -64, -16, -8, -1, 0, 1, 7, 8, 16, 64, 128])
    right = (
        [31, 31, 26, 16, 8, 1, 0, 0, 0, 0, 0, 0, 0]
        if causal
        else [15, 15, 14, 10, 8, 1, 0, 17, 23, 24, 26, 30, 31]
    )
    assert buckets(listed, causal=causal).tolist() == right


@pytest.mark.parametrize("causal", [False, True])
def test_the_bias_and_its_gradient_are_t5s(causal):
    reference = T5Attention(T5Config(d_model=32, d_kv=8, num_heads=4, is_decoder=causal), True, layer_idx=0)
    weight = reference.relative_attention_bias.weight
    ours = RelativeBuckets(4, causal=causal)
    ours.load_state_dict({"weight": weight.detach()})
    pull = torch.randn(1, 4, 50, 200, generator=torch.Generator().manual_seed(0))
    biases = [
        reference.compute_bias(50, 200, past_seen_tokens=150), ours.bias(counted(200, 150), counted(200)),
    ]  # fmt: skip
    assert torch.equal(biases[0], biases[1])
    for bias in biases:
        (bias * pull).sum().backward()
    torch.testing.assert_close(ours.weight.grad, weight.grad)


@pytest.mark.parametrize("kind", ["sinusoidal", "alibi", "relative"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("network", ["decoder", "encoder"])
def test_networks_with_these_positions_train_in_each_dtype_beyond_any_context(kind, dtype, network):
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 97, "max_positions": 8}
    config = ModelConfig(
        family="gpt2", network=network, positions=kind, mask_head=network == "encoder", **shape
    )
    model = build(config).to(dtype)
    ids = torch.arange(40).reshape(2, 20)
    for mask in (None, ids % 20 > 3):
        logits = model(ids, attention_mask=mask)
        assert logits.dtype == dtype and torch.isfinite(logits).all()
    logits.float().logsumexp(-1).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
