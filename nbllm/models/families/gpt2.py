"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, GELU, biases."""

from __future__ import annotations

import re
from typing import Any

from nbllm.models.config import ModelConfig
from nbllm.models.families.base import ACTIVATION_NAMES, ACTIVATIONS, HEAD, Family, WeightRule
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.families.registry import FAMILIES
from nbllm.models.families.shared import LAYER_NORM_DECODER, plain_heads, rules_of


def read(settings: ConfigReader) -> ModelConfig:
    """Read a GPT2Config."""
    hidden_size = settings.integer("n_embd", 768)
    max_positions = settings.integer("n_positions", 1024)
    settings.only("n_ctx", max_positions)  # the older name of the same number
    settings.only("scale_attn_weights", True)
    settings.only("scale_attn_by_inverse_layer_idx", False)
    return ModelConfig(
        family="gpt2",
        vocab_size=settings.integer("vocab_size", 50257),
        hidden_size=hidden_size,
        num_layers=settings.integer("n_layer", 12),
        num_heads=settings.integer("n_head", 12),
        intermediate_size=settings.integer("n_inner", 4 * hidden_size),
        max_positions=max_positions,
        norm_eps=settings.number("layer_norm_epsilon", 1e-5),
        activation=settings.choice("activation_function", "gelu_new", ACTIVATIONS),
        tie_embeddings=settings.flag("tie_word_embeddings", True),
        initializer_range=settings.number("initializer_range", 0.02),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """Return a GPT2Config's values."""
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.intermediate_size,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": ACTIVATION_NAMES[config.activation],
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initializer_range,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def rules(config: ModelConfig) -> list[WeightRule]:
    """Return the weight map. GPT-2's matrices are stored (in, out): its Conv1D layer."""
    out = [
        WeightRule("transformer.wte.weight", ("embedding.weight",)),
        WeightRule("transformer.wpe.weight", ("positions.weight",)),
    ]
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        parts = (
            ("ln_1", ("attention_norm",), False),
            ("attn.c_attn", ("attention.query", "attention.key", "attention.value"), True),
            ("attn.c_proj", ("attention.output",), True),
            ("ln_2", ("feed_forward_norm",), False),
            ("mlp.c_fc", ("feed_forward.up",), True),
            ("mlp.c_proj", ("feed_forward.down",), True),
        )
        for their_part, our_parts, is_matrix in parts:
            for kind in ("weight", "bias"):
                targets = tuple(f"{ours}.{part}.{kind}" for part in our_parts)
                transposed = is_matrix and kind == "weight"
                out.append(WeightRule(f"{theirs}.{their_part}.{kind}", targets, transposed))
    out += rules_of([("transformer.ln_f", "norm")], bias=True)
    if not config.tie_embeddings:
        out.append(WeightRule(HEAD, ("head.weight",)))
    return out


FAMILIES.register("gpt2")(
    Family(
        name="gpt2",
        label="GPT-2",
        architecture="GPT2LMHeadModel",
        base_prefix="transformer.",
        fixed={
            **LAYER_NORM_DECODER,
            "positions": "learned",
            "attention_bias": True,
            "attention_output_bias": True,
            "feed_forward_bias": True,
        },
        read=read,
        write=write,
        rules=rules,
        unused=re.compile(r"transformer\.h\.\d+\.attn\.(masked_)?bias"),
        requirements=(plain_heads,),
    )
)
