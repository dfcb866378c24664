"""PaLM, Gopher and the first GLM, which transformers has no class for: their parts, and how they are kept."""

import math

import pytest
import torch
import torch.nn.functional as F

import nbllm as nb
from nbllm.core.errors import UserError
from nbllm.models.network import build
from nbllm.models.presets import make_config

SHAPE = {"num_layers": 2, "hidden_size": 32, "num_heads": 4, "max_positions": 48}
NAMES = ["palm-8b", "gopher-44m", "glm-base", "glm-130b"]


@pytest.fixture(scope="module")
def tokenizer():
    return nb.data.train_tokenizer(nb.data.load("pydocs").select(range(5)), vocab_size=300)


@pytest.fixture(scope="module", params=NAMES)
def lm(request, tokenizer):
    return nb.LM.new(request.param, tokenizer=tokenizer, initializer_range=0.3, **SHAPE)


def test_it_is_kept_whole_and_generates(lm, tmp_path):
    opened = nb.load(lm.save(tmp_path / "model"))
    assert opened.config == lm.config and opened.config.family == "nbllm"
    ids = torch.randint(300, (2, 17), generator=torch.Generator().manual_seed(0))
    assert torch.equal(opened.model(ids), lm.model(ids))
    settings = {"temperature": 0, "max_new_tokens": 8}
    together = lm.generate(["def add(a, b):", "x"], **settings)
    assert [each.tokens for each in together] == [
        opened.generate(prompt, **settings).tokens for prompt in ("def add(a, b):", "x")
    ]
    with pytest.raises(UserError, match="nbllm"):
        lm.save(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("name", "objective"), [("palm-8b", "causal_lm"), ("gopher-44m", "causal_lm"), ("glm-130b", "prefix_lm")]
)
def test_it_trains(name, objective, tokenizer, tmp_path):
    lm = nb.LM.new(name, tokenizer=tokenizer, **SHAPE)
    run = nb.train(
        lm, nb.data.load("pydocs").select(range(5)), folder=tmp_path, objective=objective, steps=8, batch_size=4,
        sequence_length=32, lr=1e-2, validation=None, num_threads=1,
    ).wait(progress=False)  # fmt: skip
    losses = run.history("loss")[1]
    assert run.state == "finished" and losses[-1] < losses[0] - 0.1


def test_palm_is_multi_query_without_biases_and_scales_its_logits():
    config = make_config("palm-8b", vocab_size=97, **SHAPE)
    assert (config.num_kv_heads, config.head_dim) == (1, 8)
    model = build(config)
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]
    ids = torch.arange(9)[None]
    with torch.no_grad():
        x = model.embedding(ids)
        for block in model.blocks:  # y = x + MLP(LN(x)) + Attention(LN(x)), section 2
            normal = F.layer_norm(x, (32,), block.attention_norm.weight, None, 1e-6)
            context = _context(model)
            inner = F.silu(block.feed_forward.gate(normal)) * block.feed_forward.up(normal)
            x = x + block.feed_forward.down(inner) + block.attention(normal, context)
        x = F.layer_norm(x, (32,), model.norm.weight, None, 1e-6)
        torch.testing.assert_close(model(ids), x @ model.embedding.weight.T / math.sqrt(32))


def _context(model):
    from nbllm.nn.attention import AttentionContext
    from nbllm.nn.positions import Places

    places = Places(slice(0, 9), 9)
    return AttentionContext(scheme=model.positions, positions=places, key_positions=places)


def test_deepnorm_multiplies_the_stream_and_divides_new_weights():
    config = make_config("glm-130b", vocab_size=97, **SHAPE)
    assert config.residual_scale == 2.0  # sqrt(2 * 2 layers)
    model = build(config)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        x, context = model.embedding(ids), _context(model)
        for block in model.blocks:  # LayerNorm(alpha x + f(x)), Zeng et al. 2022, section 2.1
            for norm, part in (
                (block.attention_norm, block.attention(x, context)),
                (block.feed_forward_norm, None),
            ):
                added = block.feed_forward(x) if part is None else part
                x = F.layer_norm(2 * x + added, (32,), norm.weight, norm.bias, config.norm_eps)
        torch.testing.assert_close(model.hidden(ids), x)
    deviation = {
        name: float(weight.detach().std()) for name, weight in model.named_parameters() if weight.dim() == 2
    }
    for name, found in deviation.items():
        scaled = any(part in name for part in ("value", "attention.output", "feed_forward"))
        assert found == pytest.approx(0.01 if scaled else 0.02, rel=0.1), name


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match='residual_scale is for norm_placement="post"'):
        make_config("palm-8b", residual_scale=2.0)
    with pytest.raises(UserError, match="residual_scale"):
        make_config("bert", residual_scale=2.0)
