"""OPT (Zhang et al. 2022, arXiv:2205.01068): GPT-2's parts with ReLU, two position rows before the first."""

from __future__ import annotations

import re
from typing import Any

from nbllm.models.config import ModelConfig
from nbllm.models.families.base import ACTIVATION_NAMES, ACTIVATIONS, HEAD, Family, WeightRule
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.families.registry import FAMILIES
from nbllm.models.families.shared import LAYER_NORM_DECODER, plain_heads, rules_of

_OFFSET = 2


def read(settings: ConfigReader) -> ModelConfig:
    """Read an OPTConfig."""
    hidden_size = settings.integer("hidden_size", 768)
    embedding_size = settings.integer("word_embed_proj_dim", hidden_size)
    is_pre = settings.flag("do_layer_norm_before", True)
    if is_pre:
        settings.only("_remove_final_layer_norm", False)
    settings.ignore("_remove_final_layer_norm")  # where norms come after each part there is none
    settings.only("layer_norm_elementwise_affine", True)
    has_biases = settings.flag("enable_bias", True)
    return ModelConfig(
        family="opt",
        vocab_size=settings.integer("vocab_size", 50272),
        hidden_size=hidden_size,
        num_layers=settings.integer("num_hidden_layers", 12),
        num_heads=settings.integer("num_attention_heads", 12),
        intermediate_size=settings.integer("ffn_dim", 3072),
        max_positions=settings.integer("max_position_embeddings", 2048),
        position_offset=_OFFSET,
        norm_placement="pre" if is_pre else "post",
        embedding_size=embedding_size if embedding_size != hidden_size else 0,
        activation=settings.choice("activation_function", "relu", ACTIVATIONS),
        attention_bias=has_biases,
        feed_forward_bias=has_biases,
        tie_embeddings=settings.flag("tie_word_embeddings", True),
        initializer_range=settings.number("init_std", 0.02),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """Return an OPTConfig's values."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "word_embed_proj_dim": config.embedding_size or config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "ffn_dim": config.intermediate_size,
        "max_position_embeddings": config.max_positions,
        "activation_function": ACTIVATION_NAMES[config.activation],
        "enable_bias": config.attention_bias,
        "do_layer_norm_before": config.norm_placement == "pre",
        "tie_word_embeddings": config.tie_embeddings,
        "init_std": config.initializer_range,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }


def rules(config: ModelConfig) -> list[WeightRule]:
    """Return the weight map, which is one to one."""
    base = "model.decoder"
    out = [
        WeightRule(f"{base}.embed_tokens.weight", ("embedding.weight",)),
        WeightRule(f"{base}.embed_positions.weight", ("positions.weight",)),
    ]
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}", f"{base}.layers.{layer}"
        norms = (("self_attn_layer_norm", "attention_norm"), ("final_layer_norm", "feed_forward_norm"))
        matrices = (
            ("self_attn.q_proj", "attention.query"),
            ("self_attn.k_proj", "attention.key"),
            ("self_attn.v_proj", "attention.value"),
            ("self_attn.out_proj", "attention.output"),
            ("fc1", "feed_forward.up"),
            ("fc2", "feed_forward.down"),
        )
        for parts, bias in ((norms, True), (matrices, config.attention_bias)):
            out += rules_of([(f"{theirs}.{their}", f"{ours}.{our}") for their, our in parts], bias=bias)
    if config.norm_placement == "pre":
        out += rules_of([(f"{base}.final_layer_norm", "norm")], bias=True)
    if config.embedding_size:
        projections = (("project_in", "projection"), ("project_out", "head_projection"))
        out += rules_of([(f"{base}.{their}", our) for their, our in projections], bias=False)
    if not config.tie_embeddings:
        out.append(WeightRule(HEAD, ("head.weight",)))
    return out


def _can_be_written(config: ModelConfig) -> str | None:
    if config.norm_placement == "sandwich" or config.embedding_size == config.hidden_size:
        return (
            'An opt model has norm_placement="pre" or "post", and embedding_size 0 or other than hidden_size.'
        )
    if config.attention_bias != config.feed_forward_bias:
        return "An opt model has biases in attention and feed-forward part, or in neither."
    return None


FAMILIES.register("opt")(
    Family(
        name="opt",
        label="OPT",
        architecture="OPTForCausalLM",
        base_prefix="model.",
        fixed={
            **LAYER_NORM_DECODER,
            "positions": "learned",
            "position_offset": _OFFSET,
            "norm_eps": 1e-5,
            "attention_output_bias": True,
        },
        varied=frozenset({"norm_placement", "embedding_size"}),
        read=read,
        write=write,
        rules=rules,
        unused=re.compile("nothing"),
        requirements=(plain_heads, _can_be_written),
    )
)
