"""RoBERTa (Liu et al. 2019, arXiv:1907.11692): BERT whose positions begin after that of the padding token."""

from __future__ import annotations

import re
from typing import Any

from nbllm.core.errors import WeightsError
from nbllm.models.config import ModelConfig
from nbllm.models.families.base import Family, WeightRule, holds
from nbllm.models.families.bert import (
    POST_NORM_ENCODER,
    has_types,
    own_layers,
    read_shared,
    rules_of_body,
    rules_of_head,
    write_shared,
)
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.families.registry import FAMILIES
from nbllm.models.families.shared import plain_heads


def read(settings: ConfigReader) -> ModelConfig:
    """Read a RobertaConfig. Of its position embeddings the first ones, up to that of padding, are no token's."""
    rows = settings.integer("max_position_embeddings", 512)
    offset = settings.integer("pad_token_id", 1, least=0) + 1
    if rows <= offset:
        raise WeightsError(
            f"pad_token_id is {offset - 1}, and max_position_embeddings {rows}: no position follows padding's.",
            where=settings.where("pad_token_id"),
        )
    settings.only("hidden_act", "gelu")  # its head has this one whatever the setting
    shared = {**read_shared(settings), "vocab_size": settings.integer("vocab_size", 50265)}
    return ModelConfig(family="roberta", max_positions=rows - offset, position_offset=offset, **shared)


def write(config: ModelConfig) -> dict[str, Any]:
    """Return a RobertaConfig's values."""
    return {
        **write_shared(config),
        "max_position_embeddings": config.max_positions + config.position_offset,
        "pad_token_id": config.position_offset - 1,
    }


def rules(config: ModelConfig) -> list[WeightRule]:
    """Return the weight map, which is one to one."""
    head = (("lm_head.dense", "head.dense"), ("lm_head.layer_norm", "head.norm"))
    return rules_of_body(config, "roberta") + rules_of_head(config, head, "lm_head.bias")


def _offset(config: ModelConfig) -> str | None:
    if not config.position_offset:
        return "Its positions follow that of the padding token: position_offset must be 1 or more."
    return None


FAMILIES.register("roberta")(
    Family(
        name="roberta",
        label="RoBERTa",
        architecture="RobertaForMaskedLM",
        headless="RobertaModel",
        base_prefix="roberta.",
        head="lm_head.decoder.weight",
        of_head=re.compile(r"lm_head\..*"),
        optional={"mask_head": holds("lm_head.bias"), "pooler": holds("roberta.pooler.dense.weight")},
        fixed={**POST_NORM_ENCODER, "activation": "gelu", "embedding_size": 0},
        varied=frozenset({"position_offset"}),
        read=read,
        write=write,
        rules=rules,
        scoring={"score": "classifier.out_proj", "pooler": "classifier.dense"},
        unused=re.compile(r"roberta\.embeddings\.position_ids|lm_head\.decoder\.bias"),
        requirements=(plain_heads, own_layers, has_types, _offset),
    )
)
