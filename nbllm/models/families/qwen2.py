"""Qwen2 (Yang et al. 2024, arXiv:2407.10671): LLaMA with biases of queries, keys and values alone."""

from __future__ import annotations

import re
from typing import Any

from nbllm.models.config import ModelConfig
from nbllm.models.families.base import ACTIVATION_NAMES, ACTIVATIONS, Family
from nbllm.models.families.llama import read_rope, rules
from nbllm.models.families.registry import FAMILIES
from nbllm.models.families.settings import Settings


def read(settings: Settings) -> ModelConfig:
    """Read a Qwen2Config, whose attention must see the whole context."""
    settings.only("use_sliding_window", False)
    for unused in ("sliding_window", "max_window_layers"):  # without use_sliding_window they say nothing
        settings.ignore(unused)
    hidden_size = settings.integer("hidden_size", 4096)
    num_heads = settings.integer("num_attention_heads", 32)
    num_layers = settings.integer("num_hidden_layers", 32)
    settings.only("layer_types", ["full_attention"] * num_layers)
    return ModelConfig(
        family="qwen2",
        vocab_size=settings.integer("vocab_size", 151936),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=settings.integer("num_key_value_heads", num_heads),
        head_dim=settings.integer("head_dim", max(hidden_size // num_heads, 1)),
        intermediate_size=settings.integer("intermediate_size", 22016),
        max_positions=settings.integer("max_position_embeddings", 32768),
        positions="rotary",
        norm="rms_norm",
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        activation=settings.choice("hidden_act", "silu", ACTIVATIONS),
        gated=True,
        attention_bias=True,
        attention_output_bias=False,
        feed_forward_bias=False,
        tie_embeddings=settings.flag("tie_word_embeddings", False),
        rope_theta=read_rope(settings),
        initializer_range=settings.number("initializer_range", 0.02),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """Return a Qwen2Config's values, readable by older and newer transformers."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "tie_word_embeddings": config.tie_embeddings,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "initializer_range": config.initializer_range,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
    }


FAMILIES.register("qwen2")(
    Family(
        name="qwen2",
        architecture="Qwen2ForCausalLM",
        base_prefix="model.",
        fixed={
            "positions": "rotary",
            "norm": "rms_norm",
            "gated": True,
            "attention_bias": True,
            "attention_output_bias": False,
            "feed_forward_bias": False,
        },
        read=read,
        write=write,
        rules=rules,
        unused=re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
    )
)
