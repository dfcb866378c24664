"""Scaled rotary frequencies against transformers: frequencies, attention factor, logits inside and beyond."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from nbllm.core.errors import UserError, WeightsError
from nbllm.inference.config import SamplingConfig
from nbllm.inference.engine import generate_ids
from nbllm.inference.runners import compiled
from nbllm.models.families import FAMILIES
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.loading import load_model, save_model
from nbllm.nn.positions import Places, RopeScaling, RotaryPositions

LLAMA_3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
PUBLISHED = {  # as configuration files state them: head width, base, max_position_embeddings, scaling
    "llama-3.2-1b": (64, 5e5, 131072, {**LLAMA_3, "factor": 32.0, "original_max_position_embeddings": 8192}),
    "llama-3.1-8b": (128, 5e5, 131072, {**LLAMA_3, "factor": 8.0, "original_max_position_embeddings": 8192}),
    "qwen2.5": (128, 1e6, 32768, {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}),
    "deepseek": (
        64, 1e4, 163840,
        {
            "type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.8,
            "original_max_position_embeddings": 4096,
        },
    ),
    "yarn-not-rounded": (
        32, 1e4, 4096,
        {
            "rope_type": "yarn", "factor": 2.5, "truncate": False, "attention_factor": 1.3, "beta_fast": 16.0,
            "original_max_position_embeddings": 1024,
        },
    ),
    "vicuna-16k": (128, 1e4, 4096, {"type": "linear", "factor": 4.0}),
    "dynamic": (64, 1e4, 2048, {"type": "dynamic", "factor": 2.0}),
}  # fmt: skip


def both(head_dim, theta, max_positions, scaling):
    values = {
        "hidden_size": 2 * head_dim, "num_attention_heads": 2, "rope_theta": theta, "head_dim": head_dim,
        "max_position_embeddings": max_positions, "rope_scaling": scaling,
    }  # fmt: skip
    reader = ConfigReader(values, "config.json")
    config = FAMILIES["llama"].read(reader)
    reader.finish()
    theirs = LlamaRotaryEmbedding(LlamaConfig(**json.loads(json.dumps(values))))
    return theirs, RotaryPositions(head_dim, theta, scaling=config.rope_scaling), config


@pytest.mark.parametrize("name", PUBLISHED)
def test_frequencies_and_attention_factor(name):
    theirs, ours, config = both(*PUBLISHED[name])
    assert torch.equal(config.rope_scaling.frequencies(ours.theta, ours.rotary_dim), theirs.inv_freq)
    assert config.rope_scaling.attention_factor == pytest.approx(theirs.attention_scaling, rel=1e-12)
    ids = torch.tensor([[0, 3, 1000]])
    cos, sin = theirs(torch.empty(0), ids)
    for got, expected in zip(ours.angles(Places(ids, 1001), torch.device("cpu")), (cos, sin), strict=True):
        torch.testing.assert_close(torch.cat((got, got), dim=-1), expected, atol=1e-6, rtol=0)


def test_llama_3_keeps_high_frequencies_and_divides_low_ones():
    _, ours, config = both(*PUBLISHED["llama-3.2-1b"])
    plain = 5e5 ** (-torch.arange(0, 64, 2) / 64)
    scaled = config.rope_scaling.frequencies(ours.theta, 64)
    torch.testing.assert_close(scaled[:15], plain[:15])
    assert float(scaled[16]) == pytest.approx(4.2956e-4, rel=1e-4)
    torch.testing.assert_close(scaled[18:], plain[18:] / 32)


TINY = dict(
    vocab_size=131, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=64,
)  # fmt: skip
SCALED = {
    "llama-linear": ({"rope_type": "linear", "factor": 4.0}, {}),
    "llama-dynamic": ({"rope_type": "dynamic", "factor": 2.0}, {"max_position_embeddings": 16}),
    "mistral-yarn": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {"num_key_value_heads": 2, "sliding_window": None},
    ),
    "qwen2-llama3": (
        {**LLAMA_3, "factor": 4.0, "original_max_position_embeddings": 16}, {"num_key_value_heads": 4},
    ),
    "qwen3-yarn": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "attention_factor": 1.5},
        {"num_key_value_heads": 2, "head_dim": 20},
    ),
    "phi-linear": ({"rope_type": "linear", "factor": 4.0}, {"partial_rotary_factor": 0.5, "num_attention_heads": 3}),
    "gpt_neox-linear": ({"rope_type": "linear", "factor": 4.0}, {"num_attention_heads": 3}),
}  # fmt: skip


@pytest.fixture(params=SCALED)
def scaled(request, make_reference, tmp_path):
    scaling, changes = SCALED[request.param]
    theirs = make_reference(request.param, **{**TINY, **changes, "rope_parameters": dict(scaling)})
    theirs.save_pretrained(tmp_path)
    return theirs, load_model(tmp_path)


def test_logits_inside_and_beyond_the_original_context(scaled, tmp_path):
    theirs, ours = scaled
    for length in (9, 31):
        tokens = torch.randint(131, (2, length), generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-5, rtol=0)
    save_model(ours, tmp_path)
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert load_model(tmp_path).config == ours.config
    with torch.inference_mode():
        assert torch.equal(reopened(tokens).logits, theirs(tokens).logits)


def test_a_cache_changes_nothing_and_texts_do_not_change_each_other(scaled, monkeypatch):
    """Under dynamic scaling transformers' cache keeps keys at old angles; ours equals one pass at every length."""
    _, ours = scaled
    tokens, mask = (
        torch.randint(131, (2, 31), generator=torch.Generator().manual_seed(2)),
        torch.ones(2, 31, dtype=torch.long),
    )
    mask[1, :6] = 0
    cache, end = ours.make_cache(2, 31), 0
    with torch.inference_mode():
        for count in (9, 1, 1, 8, 1, 11):
            end += count
            got = ours(tokens[:, end - count : end], cache=cache, attention_mask=mask[:, :end])[:, -1]
            alone = torch.stack([ours(tokens[:1, :end])[0, -1], ours(tokens[1:, 6:end])[0, -1]])
            torch.testing.assert_close(got, alone, atol=1e-5, rtol=0)
        cache.crop(12)
        got = ours(tokens[:, 12:14], cache=cache, attention_mask=mask[:, :14])[:, -1]
        torch.testing.assert_close(got[0], ours(tokens[:1, :14])[0, -1], atol=1e-5, rtol=0)
    monkeypatch.setattr(compiled, "MIN_PARAMETERS", 0)
    prompt = tokens[0, :12].tolist()
    config = SamplingConfig(max_new_tokens=12, temperature=0)
    expected = list(prompt)
    for _ in range(12):
        expected.append(int(ours(torch.tensor([expected]))[0, -1].argmax()))
    assert generate_ids(ours, [prompt], config, eos_id=None) == [expected[12:]]
    static = ours.config.rope_scaling.kind != "dynamic"
    assert compiled.CompiledRunner.serves(ours) == (
        static and ours.config.family in ("llama", "mistral", "qwen2")
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_scaling": {"type": "linear"}}, "factor is not stated; 'linear' needs it"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor must be between 1 and"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "type is 'longrope'; it must be one of"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is not stated"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 32}}, "'beta_fast'"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
            "rope_scaling and rope_parameters differ",
        ),
        (
            {"rope_scaling": {**LLAMA_3, "factor": 2.0, "high_freq_factor": 1.0}},
            "low_freq_factor must be less than high_freq_factor",
        ),
    ],
)
def test_what_is_wrong_is_named(settings, message):
    with pytest.raises((UserError, WeightsError)) as caught:
        reader = ConfigReader({**settings, "max_position_embeddings": 64}, "config.json")
        FAMILIES["llama"].read(reader)
        reader.finish()
    assert message in str(caught.value)


def test_settings_of_another_kind_are_refused():
    with pytest.raises(UserError, match="beta_fast is not a setting of 'linear'"):
        RopeScaling(kind="linear", factor=2.0, beta_fast=16.0)
    with pytest.raises(UserError, match="original_max_positions must be greater than 0"):
        RopeScaling(kind="yarn", factor=2.0)
    with pytest.raises(UserError, match="Did you mean 'linear'"):
        RopeScaling(kind="linera", factor=2.0)
