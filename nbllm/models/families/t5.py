"""T5 (Raffel et al. 2020, arXiv:1910.10683), v1.0 and v1.1, and FLAN-T5 (Chung et al. 2022, arXiv:2210.11416)."""

from __future__ import annotations

import re
from typing import Any

from nbllm.models.config import ModelConfig
from nbllm.models.families.base import ACTIVATION_NAMES, ACTIVATIONS, HEAD, Family, Tensors, WeightRule
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.families.registry import FAMILIES
from nbllm.models.families.shared import rules_of

# What T5 cannot vary.
ENCODER_DECODER: dict[str, Any] = {
    "network": "encoder_decoder",
    "positions": "relative",
    "norm": "rms_norm",
    "norm_placement": "pre",
    "attention_scale": 1.0,
    "attention_bias": False,
    "feed_forward_bias": False,
}
_ATTENTION = (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output"))
# `feed_forward_proj`, and what it means: the activation and whether it is gated. "gated-gelu" has always been the tanh
# form; `dense_act_fn` may state another.
_FEED_FORWARDS = {
    **{theirs: (theirs, False) for theirs in ACTIVATIONS},
    **{f"gated-{theirs}": (theirs, True) for theirs in ACTIVATIONS},
    "gated-gelu": ("gelu_new", True),
}


def read(settings: ConfigReader) -> ModelConfig:
    """Read a T5Config. Of v1.0 the head is the embedding, and scaled; of v1.1 it is a matrix of its own."""
    settings.only("is_encoder_decoder", True)
    settings.only("relative_attention_num_buckets", 32)
    settings.only("relative_attention_max_distance", 128)
    settings.ignore("dropout_rate")
    tied = settings.flag("tie_word_embeddings", True)
    known = {name: name for name in _FEED_FORWARDS}
    activation, gated = _FEED_FORWARDS[settings.choice("feed_forward_proj", "relu", known)]
    layers = settings.integer("num_layers", 6)
    return ModelConfig(
        family="t5",
        **ENCODER_DECODER,
        vocab_size=settings.integer("vocab_size", 32128),
        hidden_size=settings.integer("d_model", 512),
        head_dim=settings.integer("d_kv", 64),
        intermediate_size=settings.integer("d_ff", 2048),
        num_layers=layers,
        num_decoder_layers=settings.integer("num_decoder_layers", layers),
        num_heads=settings.integer("num_heads", 8),
        max_positions=settings.integer("n_positions", 512),
        norm_eps=settings.number("layer_norm_epsilon", 1e-6),
        activation=settings.choice("dense_act_fn", activation, ACTIVATIONS),
        gated=settings.flag("is_gated_act", gated),
        tie_embeddings=tied,
        initializer_range=settings.number("initializer_range", 0.02),  # ours: T5Config has none
        scale_head=settings.flag("scale_decoder_outputs", tied),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """Return a T5Config's values."""
    name = ACTIVATION_NAMES[config.activation]
    return {
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "d_kv": config.head_dim,
        "d_ff": config.intermediate_size,
        "num_layers": config.num_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "n_positions": config.max_positions,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": config.norm_eps,
        "feed_forward_proj": f"gated-{name.removesuffix('_new')}" if config.gated else name,
        "dense_act_fn": name,
        "is_gated_act": config.gated,
        "tie_word_embeddings": config.tie_embeddings,
        "scale_decoder_outputs": config.scale_head,
        "initializer_range": config.initializer_range,
        "dropout_rate": 0.0,
    }


def rules(config: ModelConfig) -> list[WeightRule]:
    """Return the weight map, which is one to one."""
    out = [WeightRule("shared.weight", ("embedding.weight",))]
    up = (("wi_0", "gate"), ("wi_1", "up")) if config.gated else (("wi", "up"),)
    for stack, layers in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
        parts = [("SelfAttention", "attention", _ATTENTION)]
        if stack == "decoder":
            parts.append(("EncDecAttention", "cross_attention", _ATTENTION))
        parts.append(("DenseReluDense", "feed_forward", (*up, ("wo", "down"))))
        out.append(
            WeightRule(
                f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                (f"{stack}.positions.weight",),
            )
        )
        for layer in range(layers):
            for place, (theirs, ours, matrices) in enumerate(parts):
                their, our = f"{stack}.block.{layer}.layer.{place}", f"{stack}.blocks.{layer}.{ours}"
                names = [(f"{their}.{theirs}.{matrix}", f"{our}.{name}") for matrix, name in matrices]
                out += rules_of([*names, (f"{their}.layer_norm", f"{our}_norm")], bias=False)
        out += rules_of([(f"{stack}.final_layer_norm", f"{stack}.norm")], bias=False)
    if not config.tie_embeddings:
        out.append(WeightRule(HEAD, ("head.weight",)))
    return out


def _is_tied(config: ModelConfig, tensors: Tensors) -> bool:
    """Return whether the head is the embedding: transformers 5 says so of v1.1 even where the file holds a head."""
    return config.tie_embeddings and (config.scale_head or HEAD not in tensors)


FAMILIES.register("t5")(
    Family(
        name="t5",
        label="T5",
        architecture="T5ForConditionalGeneration",
        base_prefix="",
        optional={"tie_embeddings": _is_tied},
        fixed=ENCODER_DECODER,
        varied=frozenset({"num_decoder_layers", "attention_scale", "scale_head"}),
        read=read,
        write=write,
        rules=rules,
        scoring={},
        unused=re.compile(
            r"(encoder|decoder)\.embed_tokens\.weight"
            r"|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
        ),
    )
)
