"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108): BERT with half the layers, no token types and no pooler."""

from __future__ import annotations

import re
from typing import Any

from nbllm.models.config import ModelConfig
from nbllm.models.families.base import ACTIVATION_NAMES, ACTIVATIONS, Family, WeightRule, holds
from nbllm.models.families.bert import POST_NORM_ENCODER, own_layers, rules_of_head
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.families.registry import FAMILIES
from nbllm.models.families.shared import plain_heads, rules_of

_NORM_EPS = 1e-12  # stands in transformers' code, not in the configuration
_BLOCK = (
    ("attention.q_lin", "attention.query"),
    ("attention.k_lin", "attention.key"),
    ("attention.v_lin", "attention.value"),
    ("attention.out_lin", "attention.output"),
    ("sa_layer_norm", "attention_norm"),
    ("ffn.lin1", "feed_forward.up"),
    ("ffn.lin2", "feed_forward.down"),
    ("output_layer_norm", "feed_forward_norm"),
)


def read(settings: ConfigReader) -> ModelConfig:
    """Read a DistilBertConfig."""
    settings.ignore("sinusoidal_pos_embds")  # the file holds the vectors, whatever they began from
    settings.only("tie_word_embeddings", True)
    settings.only("tie_weights_", True)
    return ModelConfig(
        family="distilbert",
        vocab_size=settings.integer("vocab_size", 30522),
        hidden_size=settings.integer("dim", 768),
        num_layers=settings.integer("n_layers", 6),
        num_heads=settings.integer("n_heads", 12),
        intermediate_size=settings.integer("hidden_dim", 3072),
        max_positions=settings.integer("max_position_embeddings", 512),
        activation=settings.choice("activation", "gelu", ACTIVATIONS),
        norm_eps=_NORM_EPS,
        initializer_range=settings.number("initializer_range", 0.02),
        **POST_NORM_ENCODER,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """Return a DistilBertConfig's values."""
    return {
        "vocab_size": config.vocab_size,
        "dim": config.hidden_size,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "hidden_dim": config.intermediate_size,
        "max_position_embeddings": config.max_positions,
        "activation": ACTIVATION_NAMES[config.activation],
        "initializer_range": config.initializer_range,
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "tie_word_embeddings": True,
    }


def rules(config: ModelConfig) -> list[WeightRule]:
    """Return the weight map, which is one to one."""
    out = [
        WeightRule("distilbert.embeddings.word_embeddings.weight", ("embedding.weight",)),
        WeightRule("distilbert.embeddings.position_embeddings.weight", ("positions.weight",)),
        *rules_of([("distilbert.embeddings.LayerNorm", "embedding_norm")], bias=True),
    ]
    for layer in range(config.num_layers):
        for theirs, ours in _BLOCK:
            out += rules_of(
                [(f"distilbert.transformer.layer.{layer}.{theirs}", f"blocks.{layer}.{ours}")], bias=True
            )
    head = (("vocab_transform", "head.dense"), ("vocab_layer_norm", "head.norm"))
    return out + rules_of_head(config, head, "vocab_projector.bias")


FAMILIES.register("distilbert")(
    Family(
        name="distilbert",
        label="DistilBERT",
        architecture="DistilBertForMaskedLM",
        headless="DistilBertModel",
        base_prefix="distilbert.",
        head="vocab_projector.weight",
        of_head=re.compile(r"vocab_.*"),
        optional={"mask_head": holds("vocab_projector.bias")},
        fixed={
            **POST_NORM_ENCODER, "norm_eps": _NORM_EPS, "token_types": 0, "pooler": False, "position_offset": 0,
            "embedding_size": 0,
        },
        read=read,
        write=write,
        rules=rules,
        scoring={},
        unused=re.compile(r"distilbert\.embeddings\.position_ids"),
        requirements=(plain_heads, own_layers),
    )
)  # fmt: skip
