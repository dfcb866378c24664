"""A layout of our own, for what transformers has no class for: prefix decoders, PaLM, Gopher, the first GLM."""

from __future__ import annotations

import re
from typing import Any

from nbllm.models.config import ModelConfig
from nbllm.models.families.base import USUAL, Family, WeightRule
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.families.registry import FAMILIES
from nbllm.models.network import build_without_weights

_SHAPE = "model_config"


def read(settings: ConfigReader) -> ModelConfig:
    """Read a `ModelConfig`, which stands in the file as it is."""
    return ModelConfig.from_dict(settings.mapping(_SHAPE))


def write(config: ModelConfig) -> dict[str, Any]:
    """Return the configuration file of a model."""
    return {_SHAPE: config.to_dict()}


def rules(config: ModelConfig) -> list[WeightRule]:
    """Return the weight map: every parameter under its own name."""
    return [WeightRule(name, (name,)) for name, _ in build_without_weights(config).named_parameters()]


OWN = "nbllm"
FAMILIES.register(OWN)(
    Family(
        name=OWN,
        label=OWN,
        architecture=OWN,
        base_prefix="",
        head="head.weight",
        fixed={},
        varied=frozenset(USUAL),
        read=read,
        write=write,
        rules=rules,
        scoring={},
        unused=re.compile("nothing"),
    )
)
