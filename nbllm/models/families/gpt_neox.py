"""GPT-NeoX (Black et al. 2022, arXiv:2204.06745) and Pythia: parallel blocks, rotary positions in part of each head."""

from __future__ import annotations

import re
from typing import Any

from nbllm.models.config import ModelConfig
from nbllm.models.families.base import ACTIVATION_NAMES, ACTIVATIONS, Family, WeightRule
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.families.registry import FAMILIES
from nbllm.models.families.shared import (
    LAYER_NORM_DECODER,
    plain_heads,
    read_rope,
    rules_of,
    write_rope,
)

_HEAD = "embed_out.weight"


def read(settings: ConfigReader) -> ModelConfig:
    """Read a GPTNeoXConfig, old (`rotary_pct`, `rotary_emb_base`) or new (`rope_parameters`)."""
    return ModelConfig(
        family="gpt_neox",
        vocab_size=settings.integer("vocab_size", 50432),
        hidden_size=settings.integer("hidden_size", 6144),
        num_layers=settings.integer("num_hidden_layers", 44),
        num_heads=settings.integer("num_attention_heads", 64),
        intermediate_size=settings.integer("intermediate_size", 24576),
        positions="rotary",
        parallel_block=settings.flag("use_parallel_residual", True),
        norm_eps=settings.number("layer_norm_eps", 1e-5),
        activation=settings.choice("hidden_act", "gelu", ACTIVATIONS),
        attention_bias=settings.flag("attention_bias", True),
        tie_embeddings=settings.flag("tie_word_embeddings", False),
        initializer_range=settings.number("initializer_range", 0.02),
        **read_rope(
            settings, max_positions=2048, theta="rotary_emb_base", fraction="rotary_pct", usual_fraction=0.25
        ),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """Return a GPTNeoXConfig's values, readable by older and newer transformers."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "use_parallel_residual": config.parallel_block,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "attention_bias": config.attention_bias,
        "tie_word_embeddings": config.tie_embeddings,
        "rotary_pct": config.rotary_fraction,
        **write_rope(config, theta="rotary_emb_base"),
        "initializer_range": config.initializer_range,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
    }


def rules(config: ModelConfig) -> list[WeightRule]:
    """Return the weight map; queries, keys and values come in one matrix, head by head."""
    out = [WeightRule("gpt_neox.embed_in.weight", ("embedding.weight",))]
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}", f"gpt_neox.layers.{layer}"
        fused = tuple(f"{ours}.attention.{part}" for part in ("query", "key", "value"))
        has_bias = config.attention_bias
        out += rules_of(
            [(f"{theirs}.attention.query_key_value", fused)], bias=has_bias, heads=config.num_heads
        )
        out += rules_of([(f"{theirs}.attention.dense", f"{ours}.attention.output")], bias=has_bias)
        parts = (
            ("input_layernorm", "attention_norm"),
            ("post_attention_layernorm", "feed_forward_norm"),
            ("mlp.dense_h_to_4h", "feed_forward.up"),
            ("mlp.dense_4h_to_h", "feed_forward.down"),
        )
        out += rules_of([(f"{theirs}.{their}", f"{ours}.{our}") for their, our in parts], bias=True)
    out += rules_of([("gpt_neox.final_layer_norm", "norm")], bias=True)
    if not config.tie_embeddings:
        out.append(WeightRule(_HEAD, ("head.weight",)))
    return out


FAMILIES.register("gpt_neox")(
    Family(
        name="gpt_neox",
        label="GPT-NeoX",
        architecture="GPTNeoXForCausalLM",
        base_prefix="gpt_neox.",
        head=_HEAD,
        of_head=re.compile(re.escape(_HEAD)),
        fixed={
            **LAYER_NORM_DECODER,
            "positions": "rotary",
            "attention_output_bias": True,
            "feed_forward_bias": True,
        },
        varied=frozenset({"parallel_block", "rotary_fraction", "rope_scaling"}),
        read=read,
        write=write,
        rules=rules,
        unused=re.compile(r"gpt_neox\.layers\.\d+\.attention\.((masked_)?bias|rotary_emb\.inv_freq)"),
        requirements=(plain_heads,),
    )
)
