"""BLOOM (Le Scao et al. 2022, arXiv:2211.05100): ALiBi, and a normalization of the embedded tokens."""

from __future__ import annotations

import re
from typing import Any

from nbllm.models.config import ModelConfig
from nbllm.models.families.base import HEAD, Family, WeightRule
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.families.registry import FAMILIES
from nbllm.models.families.shared import LAYER_NORM_DECODER, plain_heads, rules_of

# What old files carry of the program that trained them, which transformers does not read.
_REMARKS = (
    "attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion", "offset_alibi", "skip_bias_add",
    "skip_bias_add_qkv", "slow_but_exact", "unk_token_id",
)  # fmt: skip
_FIXED: dict[str, Any] = {
    **LAYER_NORM_DECODER,
    "positions": "alibi",
    "embedding_norm": True,
    "activation": "gelu_tanh",
    "attention_bias": True,
    "attention_output_bias": True,
    "feed_forward_bias": True,
}


def read(settings: ConfigReader) -> ModelConfig:
    """Read a BloomConfig; `n_embed`, `num_hidden_layers` and `num_attention_heads` are older and newer names."""
    hidden_size = settings.integer("n_embed", settings.integer("hidden_size", 64))
    settings.only("apply_residual_connection_post_layernorm", False)
    settings.only("n_inner", 4 * hidden_size)
    for remark in _REMARKS:
        settings.ignore(remark)
    return ModelConfig(
        family="bloom",
        vocab_size=settings.integer("vocab_size", 250880),
        hidden_size=hidden_size,
        num_layers=settings.integer("num_hidden_layers", settings.integer("n_layer", 2)),
        num_heads=settings.integer("num_attention_heads", settings.integer("n_head", 8)),
        max_positions=settings.integer("seq_length", 2048),  # which ALiBi does not limit
        norm_eps=settings.number("layer_norm_epsilon", 1e-5),
        tie_embeddings=settings.flag("tie_word_embeddings", True),
        initializer_range=settings.number("initializer_range", 0.02),
        **{name: value for name, value in _FIXED.items() if name != "network"},
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """Return a BloomConfig's values."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "seq_length": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initializer_range,
        "apply_residual_connection_post_layernorm": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }


def rules(config: ModelConfig) -> list[WeightRule]:
    """Return the weight map; queries, keys and values come in one matrix, head by head."""
    out = [WeightRule("transformer.word_embeddings.weight", ("embedding.weight",))]
    out += rules_of([("transformer.word_embeddings_layernorm", "embedding_norm")], bias=True)
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        fused = tuple(f"{ours}.attention.{part}" for part in ("query", "key", "value"))
        out += rules_of(
            [(f"{theirs}.self_attention.query_key_value", fused)], bias=True, heads=config.num_heads
        )
        parts = (
            ("input_layernorm", "attention_norm"),
            ("self_attention.dense", "attention.output"),
            ("post_attention_layernorm", "feed_forward_norm"),
            ("mlp.dense_h_to_4h", "feed_forward.up"),
            ("mlp.dense_4h_to_h", "feed_forward.down"),
        )
        out += rules_of([(f"{theirs}.{their}", f"{ours}.{our}") for their, our in parts], bias=True)
    out += rules_of([("transformer.ln_f", "norm")], bias=True)
    if not config.tie_embeddings:
        out.append(WeightRule(HEAD, ("head.weight",)))
    return out


def _inner(config: ModelConfig) -> str | None:
    if config.intermediate_size != 4 * config.hidden_size:
        return "A bloom model has intermediate_size = 4 * hidden_size."
    return None


FAMILIES.register("bloom")(
    Family(
        name="bloom",
        label="BLOOM",
        architecture="BloomForCausalLM",
        base_prefix="transformer.",
        fixed=_FIXED,
        read=read,
        write=write,
        rules=rules,
        unused=re.compile("nothing"),
        requirements=(plain_heads, _inner),
    )
)
