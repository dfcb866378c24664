"""BERT (Devlin et al. 2019, arXiv:1810.04805): an encoder with learned positions, token types, norms after."""

from __future__ import annotations

import re
from typing import Any

from nbllm.models.config import ModelConfig
from nbllm.models.families.base import ACTIVATION_NAMES, ACTIVATIONS, Family, WeightRule, holds
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.families.registry import FAMILIES
from nbllm.models.families.shared import plain_heads, rules_of

# What BERT and its relatives cannot vary.
POST_NORM_ENCODER: dict[str, Any] = {
    "network": "encoder",
    "positions": "learned",
    "norm": "layer_norm",
    "norm_placement": "post",
    "embedding_norm": True,
    "gated": False,
    "attention_bias": True,
    "attention_output_bias": True,
    "feed_forward_bias": True,
    "tie_embeddings": True,
}
# Remarks of old files on the pooler, which transformers does not read either.
_REMARKS = (
    "directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head",
    "pooler_type",
)  # fmt: skip
_BLOCK = (
    ("attention.self.query", "attention.query"),
    ("attention.self.key", "attention.key"),
    ("attention.self.value", "attention.value"),
    ("attention.output.dense", "attention.output"),
    ("attention.output.LayerNorm", "attention_norm"),
    ("intermediate.dense", "feed_forward.up"),
    ("output.dense", "feed_forward.down"),
    ("output.LayerNorm", "feed_forward_norm"),
)


def read(settings: ConfigReader) -> ModelConfig:
    """Read a BertConfig."""
    for remark in _REMARKS:
        settings.ignore(remark)
    return ModelConfig(
        family="bert",
        max_positions=settings.integer("max_position_embeddings", 512),
        **read_shared(settings),
    )


def read_shared(settings: ConfigReader) -> dict[str, Any]:
    """Read what BERT and its relatives name alike, with the same defaults."""
    settings.only("is_decoder", False)
    settings.only("position_embedding_type", "absolute")
    settings.only("tie_word_embeddings", True)
    return {
        **POST_NORM_ENCODER,
        "vocab_size": settings.integer("vocab_size", 30522),
        "hidden_size": settings.integer("hidden_size", 768),
        "num_layers": settings.integer("num_hidden_layers", 12),
        "num_heads": settings.integer("num_attention_heads", 12),
        "intermediate_size": settings.integer("intermediate_size", 3072),
        "activation": settings.choice("hidden_act", "gelu", ACTIVATIONS),
        "norm_eps": settings.number("layer_norm_eps", 1e-12),
        "token_types": settings.integer("type_vocab_size", 2),
        "initializer_range": settings.number("initializer_range", 0.02),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """Return a BertConfig's values."""
    return {**write_shared(config), "max_position_embeddings": config.max_positions}


def write_shared(config: ModelConfig) -> dict[str, Any]:
    """Return the values that BERT and its relatives name alike."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "hidden_act": ACTIVATION_NAMES[config.activation],
        "layer_norm_eps": config.norm_eps,
        "type_vocab_size": config.token_types,
        "initializer_range": config.initializer_range,
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
        "tie_word_embeddings": True,
    }


def rules(config: ModelConfig) -> list[WeightRule]:
    """Return the weight map, which is one to one."""
    head = (
        ("cls.predictions.transform.dense", "head.dense"),
        ("cls.predictions.transform.LayerNorm", "head.norm"),
    )
    return rules_of_body(config, "bert") + rules_of_head(config, head, "cls.predictions.bias")


def rules_of_body(config: ModelConfig, prefix: str) -> list[WeightRule]:
    """Return the weight map of BERT and its relatives, without the head."""
    embeddings = f"{prefix}.embeddings"
    out = [
        WeightRule(f"{embeddings}.word_embeddings.weight", ("embedding.weight",)),
        WeightRule(f"{embeddings}.position_embeddings.weight", ("positions.weight",)),
        WeightRule(f"{embeddings}.token_type_embeddings.weight", ("token_types.weight",)),
        *rules_of([(f"{embeddings}.LayerNorm", "embedding_norm")], bias=True),
    ]
    for layer in range(config.num_layers):
        for theirs, ours in _BLOCK:
            out += rules_of(
                [(f"{prefix}.encoder.layer.{layer}.{theirs}", f"blocks.{layer}.{ours}")], bias=True
            )
    return out + (rules_of([(f"{prefix}.pooler.dense", "pooler")], bias=True) if config.pooler else [])


def rules_of_head(config: ModelConfig, parts: tuple[tuple[str, str], ...], bias: str) -> list[WeightRule]:
    """Return the weight map of the head, if the model has one: `parts` by their names and ours, and its bias."""
    if not config.mask_head:
        return []
    return [*rules_of(parts, bias=True), WeightRule(bias, ("head.bias",))]


def own_layers(config: ModelConfig) -> str | None:
    """Say so where layers share their parameters, though the family's do not."""
    if config.num_layer_groups not in (0, config.num_layers):
        return "Its layers do not share their parameters: leave num_layer_groups."
    return None


def has_types(config: ModelConfig) -> str | None:
    """Say so where there are no token types, which the family always has."""
    return None if config.token_types else "It has token types: token_types must be 1 or more."


FAMILIES.register("bert")(
    Family(
        name="bert",
        label="BERT",
        architecture="BertForMaskedLM",
        headless="BertModel",
        base_prefix="bert.",
        head="cls.predictions.decoder.weight",
        of_head=re.compile(r"cls\.predictions\..*"),
        optional={"mask_head": holds("cls.predictions.bias"), "pooler": holds("bert.pooler.dense.weight")},
        other_heads=re.compile(r"cls\.seq_relationship\..*"),
        fixed={**POST_NORM_ENCODER, "position_offset": 0, "embedding_size": 0},
        read=read,
        write=write,
        rules=rules,
        scoring={"score": "classifier"},
        unused=re.compile(r"bert\.embeddings\.position_ids|cls\.predictions\.decoder\.bias"),
        requirements=(plain_heads, own_layers, has_types),
    )
)
