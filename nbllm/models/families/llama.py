"""LLaMA (Touvron et al. 2023, arXiv:2302.13971): rotary positions, RMSNorm, SwiGLU, grouped heads."""

from __future__ import annotations

import re
from typing import Any

from nbllm.models.config import ModelConfig
from nbllm.models.families.base import ACTIVATION_NAMES, ACTIVATIONS, HEAD, Family, WeightRule
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.families.registry import FAMILIES
from nbllm.models.families.shared import LLAMA_DECODER, multiple_of_heads, read_rope, rules_of, write_rope

FREQUENCIES = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")  # old files carry them


def read(settings: ConfigReader) -> ModelConfig:
    """Read a LlamaConfig, old (`rope_theta`, `rope_scaling`) or new (`rope_parameters`)."""
    shared = read_shared(settings, max_positions=2048)
    settings.all_layers("layer_types", "full_attention", shared["num_layers"])
    return ModelConfig(
        family="llama",
        vocab_size=settings.integer("vocab_size", 32000),
        intermediate_size=settings.integer("intermediate_size", 11008),
        attention_bias=settings.flag("attention_bias", False),
        feed_forward_bias=settings.flag("mlp_bias", False),
        **shared,
    )


def read_shared(
    settings: ConfigReader,
    *,
    max_positions: int,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    rope_theta: float = 10000.0,
    fraction: str = "",
) -> dict[str, Any]:
    """Read what LLaMA and its relatives name alike.

    Args:
        settings: The configuration.
        max_positions: Where it states none.
        num_kv_heads: Where it states none; None: as many as query heads.
        head_dim: Where it states none; None: hidden_size / num_heads.
        rope_theta: Where it states none.
        fraction: The setting of the part of a head that is rotated, half of it where nothing is stated; empty: all is.
    """
    hidden_size = settings.integer("hidden_size", 4096)
    num_heads = settings.integer("num_attention_heads", 32)
    if num_kv_heads is None or settings.is_null("num_key_value_heads"):
        num_kv_heads = num_heads
    return {
        "hidden_size": hidden_size,
        "num_layers": settings.integer("num_hidden_layers", 32),
        "num_heads": num_heads,
        "num_kv_heads": settings.integer("num_key_value_heads", num_kv_heads),
        "head_dim": settings.integer("head_dim", head_dim or max(hidden_size // num_heads, 1)),
        "positions": "rotary",
        "norm": "rms_norm",
        "norm_eps": settings.number("rms_norm_eps", 1e-6),
        "activation": settings.choice("hidden_act", "silu", ACTIVATIONS),
        "gated": True,
        "tie_embeddings": settings.flag("tie_word_embeddings", False),
        **read_rope(
            settings,
            max_positions=max_positions,
            usual_theta=rope_theta,
            fraction=fraction,
            usual_fraction=0.5,
        ),
        "initializer_range": settings.number("initializer_range", 0.02),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """Return a LlamaConfig's values, readable by older and newer transformers."""
    biases = {"attention_bias": config.attention_bias, "mlp_bias": config.feed_forward_bias}
    return {**write_shared(config), **biases}


def write_shared(config: ModelConfig) -> dict[str, Any]:
    """Return the values that LLaMA and its relatives name alike."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "tie_word_embeddings": config.tie_embeddings,
        **write_rope(config),
        "initializer_range": config.initializer_range,
        "attention_dropout": 0.0,
    }


def rules(config: ModelConfig) -> list[WeightRule]:
    """Return the weight map, which is one to one."""
    out = [WeightRule("model.embed_tokens.weight", ("embedding.weight",))]
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        for their_part, our_part, has_bias in (
            ("input_layernorm", "attention_norm", False),
            ("post_attention_layernorm", "feed_forward_norm", False),
            ("self_attn.q_proj", "attention.query", config.attention_bias),
            ("self_attn.k_proj", "attention.key", config.attention_bias),
            ("self_attn.v_proj", "attention.value", config.attention_bias),
            ("self_attn.o_proj", "attention.output", config.attention_bias and config.attention_output_bias),
            ("mlp.gate_proj", "feed_forward.gate", config.feed_forward_bias),
            ("mlp.up_proj", "feed_forward.up", config.feed_forward_bias),
            ("mlp.down_proj", "feed_forward.down", config.feed_forward_bias),
        ):
            out += rules_of([(f"{theirs}.{their_part}", f"{ours}.{our_part}")], bias=has_bias)
    out.append(WeightRule("model.norm.weight", ("norm.weight",)))
    if not config.tie_embeddings:
        out.append(WeightRule(HEAD, ("head.weight",)))
    return out


FAMILIES.register("llama")(
    Family(
        name="llama",
        label="LLaMA",
        architecture="LlamaForCausalLM",
        base_prefix="model.",
        fixed={
            **LLAMA_DECODER,
            "attention_output_bias": True,
        },
        varied=frozenset({"rope_scaling"}),
        read=read,
        write=write,
        rules=rules,
        unused=FREQUENCIES,
        requirements=(multiple_of_heads,),
    )
)
