"""ALBERT (Lan et al. 2020, arXiv:1909.11942): BERT with a narrow embedding and layers that share their parameters."""

from __future__ import annotations

import re
from typing import Any

from nbllm.models.config import ModelConfig
from nbllm.models.families.base import ACTIVATIONS, Family, WeightRule, holds
from nbllm.models.families.bert import (
    POST_NORM_ENCODER,
    has_types,
    read_shared,
    rules_of_head,
    write_shared,
)
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.families.registry import FAMILIES
from nbllm.models.families.shared import plain_heads, rules_of

# Settings of Google's files for what the published models do not use, and transformers does not have.
_UNUSED = {
    "down_scale_factor": 1,
    "gap_size": 0,
    "net_structure_type": 0,
    "num_memory_blocks": 0,
    "layers_to_keep": [],
}
_BLOCK = (
    ("attention.query", "attention.query"),
    ("attention.key", "attention.key"),
    ("attention.value", "attention.value"),
    ("attention.dense", "attention.output"),
    ("attention.LayerNorm", "attention_norm"),
    ("ffn", "feed_forward.up"),
    ("ffn_output", "feed_forward.down"),
    ("full_layer_layer_norm", "feed_forward_norm"),
)


def read(settings: ConfigReader) -> ModelConfig:
    """Read an AlbertConfig, whose defaults are those of the largest model."""
    settings.only("inner_group_num", 1)
    for name, value in _UNUSED.items():
        settings.only(name, value)
    shared = {
        **read_shared(settings),
        "vocab_size": settings.integer("vocab_size", 30000),
        "hidden_size": settings.integer("hidden_size", 4096),
        "num_heads": settings.integer("num_attention_heads", 64),
        "intermediate_size": settings.integer("intermediate_size", 16384),
        "activation": settings.choice("hidden_act", "gelu_new", ACTIVATIONS),
    }
    return ModelConfig(
        family="albert",
        max_positions=settings.integer("max_position_embeddings", 512),
        embedding_size=settings.integer("embedding_size", 128),
        num_layer_groups=settings.integer("num_hidden_groups", 1),
        **shared,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """Return an AlbertConfig's values."""
    return {
        **write_shared(config),
        "max_position_embeddings": config.max_positions,
        "embedding_size": config.embedding_size,
        "num_hidden_groups": config.num_layer_groups,
        "inner_group_num": 1,
    }


def rules(config: ModelConfig) -> list[WeightRule]:
    """Return the weight map, which is one to one."""
    out = [
        WeightRule("albert.embeddings.word_embeddings.weight", ("embedding.weight",)),
        WeightRule("albert.embeddings.position_embeddings.weight", ("positions.weight",)),
        WeightRule("albert.embeddings.token_type_embeddings.weight", ("token_types.weight",)),
        *rules_of([("albert.embeddings.LayerNorm", "embedding_norm")], bias=True),
        *rules_of([("albert.encoder.embedding_hidden_mapping_in", "projection")], bias=True),
    ]
    for group in range(config.num_layer_groups):
        for theirs, ours in _BLOCK:
            place = f"albert.encoder.albert_layer_groups.{group}.albert_layers.0"
            out += rules_of([(f"{place}.{theirs}", f"blocks.{group}.{ours}")], bias=True)
    out += rules_of([("albert.pooler", "pooler")], bias=True) if config.pooler else []
    head = (("predictions.dense", "head.dense"), ("predictions.LayerNorm", "head.norm"))
    return out + rules_of_head(config, head, "predictions.bias")


def _factorized_and_shared(config: ModelConfig) -> str | None:
    if not config.embedding_size or not config.num_layer_groups:
        return (
            "Its embedding is narrower and its layers are shared: give embedding_size and num_layer_groups."
        )
    return None


FAMILIES.register("albert")(
    Family(
        name="albert",
        label="ALBERT",
        architecture="AlbertForMaskedLM",
        headless="AlbertModel",
        base_prefix="albert.",
        head="predictions.decoder.weight",
        of_head=re.compile(r"predictions\..*"),
        optional={"mask_head": holds("predictions.bias"), "pooler": holds("albert.pooler.weight")},
        other_heads=re.compile(r"sop_classifier\..*"),
        fixed={**POST_NORM_ENCODER, "position_offset": 0},
        varied=frozenset({"embedding_size"}),
        read=read,
        write=write,
        rules=rules,
        scoring={"score": "classifier"},
        unused=re.compile(r"albert\.embeddings\.position_ids|predictions\.decoder\.bias"),
        requirements=(plain_heads, has_types, _factorized_and_shared),
    )
)
