"""Gemma 2 (Gemma Team 2024, arXiv:2408.00118): sandwich norms, bounded scores, windows in every other layer."""

from __future__ import annotations

from typing import Any

from nbllm.models.config import MAX_LAYERS, ModelConfig
from nbllm.models.families.base import ACTIVATIONS, HEAD, Family, WeightRule
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.families.llama import FREQUENCIES
from nbllm.models.families.registry import FAMILIES
from nbllm.models.families.shared import (
    multiple_of_heads,
    read_layer_types,
    read_rope,
    rules_of,
    write_layer_types,
    write_rope,
)

GEMMA_DECODER: dict[str, Any] = {
    "network": "decoder",
    "positions": "rotary",
    "norm": "rms_norm_offset",
    "norm_placement": "sandwich",
    "gated": True,
    "scale_embedding": True,
    "attention_output_bias": True,
    "feed_forward_bias": False,
}
_INTERVAL = 2


def read(settings: ConfigReader) -> ModelConfig:
    """Read a Gemma2Config."""
    shared = read_shared(settings)
    return ModelConfig(
        family="gemma2",
        vocab_size=settings.integer("vocab_size", 256000),
        attention_softcap=read_softcap(settings, "attn_logit_softcapping", 50.0),
        logit_softcap=read_softcap(settings, "final_logit_softcapping", 30.0),
        **read_layer_types(settings, shared["num_layers"], window=4096, interval=_INTERVAL),
        **read_rope(settings, max_positions=8192),
        **shared,
        **GEMMA_DECODER,
    )


def read_shared(settings: ConfigReader) -> dict[str, Any]:
    """Read what Gemma 2 and 3 name alike."""
    head_dim = settings.integer("head_dim", 256)
    divisor = settings.integer("query_pre_attn_scalar", 256)  # of the scores, squared
    settings.ignore("hidden_act")  # transformers reads hidden_activation
    return {
        "hidden_size": settings.integer("hidden_size", 2304),
        "num_layers": settings.integer("num_hidden_layers", 26, most=MAX_LAYERS),
        "num_heads": settings.integer("num_attention_heads", 8),
        "num_kv_heads": settings.integer("num_key_value_heads", 4),
        "head_dim": head_dim,
        "intermediate_size": settings.integer("intermediate_size", 9216),
        "norm_eps": settings.number("rms_norm_eps", 1e-6),
        "activation": settings.choice("hidden_activation", "gelu_pytorch_tanh", ACTIVATIONS),
        "attention_bias": settings.flag("attention_bias", False),
        "attention_scale": 0.0 if divisor == head_dim else divisor**-0.5,
        "tie_embeddings": settings.flag("tie_word_embeddings", True),
        "initializer_range": settings.number("initializer_range", 0.02),
    }


def read_softcap(settings: ConfigReader, key: str, default: float) -> float:
    """Return where scores or logits are bounded; null, or no default: they are not."""
    return 0.0 if settings.is_null(key) else settings.number(key, default, may_be_zero=not default)


def write(config: ModelConfig) -> dict[str, Any]:
    """Return a Gemma2Config's values, readable by older and newer transformers."""
    return {
        **write_shared(config),
        "attn_logit_softcapping": config.attention_softcap or None,
        "final_logit_softcapping": config.logit_softcap or None,
        **write_layer_types(config, window=4096),
        **write_rope(config),
    }


def write_shared(config: ModelConfig) -> dict[str, Any]:
    """Return the values that Gemma 2 and 3 name alike."""
    names = {"gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu", "silu": "silu", "relu": "relu"}
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "query_pre_attn_scalar": _divisor(config),
        "intermediate_size": config.intermediate_size,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": names[config.activation],
        "hidden_activation": names[config.activation],
        "attention_bias": config.attention_bias,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initializer_range,
        "attention_dropout": 0.0,
    }


def rules(config: ModelConfig) -> list[WeightRule]:
    """Return the weight map, which is one to one."""
    out = [WeightRule("model.embed_tokens.weight", ("embedding.weight",))]
    norms = (
        ("input_layernorm", "attention_norm"),
        ("post_attention_layernorm", "attention_output_norm"),
        ("pre_feedforward_layernorm", "feed_forward_norm"),
        ("post_feedforward_layernorm", "feed_forward_output_norm"),
        ("mlp.gate_proj", "feed_forward.gate"),
        ("mlp.up_proj", "feed_forward.up"),
        ("mlp.down_proj", "feed_forward.down"),
    )
    of_heads = (("self_attn.q_norm", "attention.query_norm"), ("self_attn.k_norm", "attention.key_norm"))
    attention = (
        ("self_attn.q_proj", "attention.query"),
        ("self_attn.k_proj", "attention.key"),
        ("self_attn.v_proj", "attention.value"),
        ("self_attn.o_proj", "attention.output"),
    )
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        without = norms + of_heads if config.qk_norm else norms
        for parts, bias in ((without, False), (attention, config.attention_bias)):
            out += rules_of([(f"{theirs}.{their}", f"{ours}.{our}") for their, our in parts], bias=bias)
    out += rules_of([("model.norm", "norm")], bias=False)
    if not config.tie_embeddings:
        out.append(WeightRule(HEAD, ("head.weight",)))
    return out


def whole_divisor(config: ModelConfig) -> str | None:
    """Return what is wrong with a scale of attention that is not one over the root of a whole number."""
    if config.attention_scale and abs(_divisor(config) ** -0.5 / config.attention_scale - 1) > 1e-9:
        return f"Models of the family {config.family} have attention_scale = 1 / sqrt(a whole number)."
    return None


def _divisor(config: ModelConfig) -> int:
    return round(config.attention_scale**-2) if config.attention_scale else config.head_dim


FAMILIES.register("gemma2")(
    Family(
        name="gemma2",
        label="Gemma 2",
        architecture="Gemma2ForCausalLM",
        base_prefix="model.",
        fixed=GEMMA_DECODER,
        varied=frozenset(
            {
                "attention_scale", "attention_softcap", "logit_softcap", "sliding_window", "full_attention_interval",
                "rope_scaling",
            }
        ),
        read=read,
        write=write,
        rules=rules,
        unused=FREQUENCIES,
        requirements=(whole_divisor, multiple_of_heads),
    )
)  # fmt: skip
