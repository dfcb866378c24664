"""Phi-1 to 2 (Li et al. 2023, arXiv:2309.05463): parallel blocks with one norm, rotary positions in part of a head."""

from __future__ import annotations

import re
from typing import Any

from nbllm.models.config import ModelConfig
from nbllm.models.families.base import ACTIVATION_NAMES, ACTIVATIONS, Family, WeightRule
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.families.llama import FREQUENCIES
from nbllm.models.families.registry import FAMILIES
from nbllm.models.families.shared import (
    LAYER_NORM_DECODER,
    read_rope,
    rules_of,
    usual_head_dim,
    write_rope,
)

_FIXED: dict[str, Any] = {
    **LAYER_NORM_DECODER,
    "positions": "rotary",
    "parallel_block": True,
    "shared_norm": True,
    "attention_bias": True,
    "attention_output_bias": True,
    "feed_forward_bias": True,
    "tie_embeddings": False,
    "head_bias": True,
}


def read(settings: ConfigReader) -> ModelConfig:
    """Read a PhiConfig, old (`rope_theta`, `partial_rotary_factor`) or new (`rope_parameters`)."""
    num_heads = settings.integer("num_attention_heads", 32)
    settings.only("tie_word_embeddings", False)
    settings.only("qk_layernorm", False)
    return ModelConfig(
        family="phi",
        vocab_size=settings.integer("vocab_size", 51200),
        hidden_size=settings.integer("hidden_size", 2048),
        num_layers=settings.integer("num_hidden_layers", 24),
        num_heads=num_heads,
        num_kv_heads=settings.integer("num_key_value_heads", num_heads),
        intermediate_size=settings.integer("intermediate_size", 8192),
        norm_eps=settings.number("layer_norm_eps", 1e-5),
        activation=settings.choice("hidden_act", "gelu_new", ACTIVATIONS),
        initializer_range=settings.number("initializer_range", 0.02),
        **read_rope(settings, max_positions=2048, fraction="partial_rotary_factor", usual_fraction=0.5),
        **_FIXED,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """Return a PhiConfig's values, readable by older and newer transformers."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "intermediate_size": config.intermediate_size,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "tie_word_embeddings": False,
        "partial_rotary_factor": config.rotary_fraction,
        **write_rope(config),
        "initializer_range": config.initializer_range,
        "attention_dropout": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def rules(config: ModelConfig) -> list[WeightRule]:
    """Return the weight map, which is one to one."""
    out = [WeightRule("model.embed_tokens.weight", ("embedding.weight",))]
    parts = (
        ("input_layernorm", "attention_norm"),
        ("self_attn.q_proj", "attention.query"),
        ("self_attn.k_proj", "attention.key"),
        ("self_attn.v_proj", "attention.value"),
        ("self_attn.dense", "attention.output"),
        ("mlp.fc1", "feed_forward.up"),
        ("mlp.fc2", "feed_forward.down"),
    )
    for layer in range(config.num_layers):
        names = [(f"model.layers.{layer}.{theirs}", f"blocks.{layer}.{ours}") for theirs, ours in parts]
        out += rules_of(names, bias=True)
    return out + rules_of([("model.final_layernorm", "norm"), ("lm_head", "head")], bias=True)


FAMILIES.register("phi")(
    Family(
        name="phi",
        label="Phi",
        architecture="PhiForCausalLM",
        base_prefix="model.",
        of_head=re.compile(r"lm_head\.(weight|bias)"),
        fixed=_FIXED,
        varied=frozenset({"rotary_fraction", "rope_scaling"}),
        read=read,
        write=write,
        rules=rules,
        unused=FREQUENCIES,
        requirements=(usual_head_dim,),
    )
)
