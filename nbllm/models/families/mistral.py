"""Mistral (Jiang et al. 2023, arXiv:2310.06825): LLaMA whose tokens see a sliding window of keys."""

from __future__ import annotations

from typing import Any

from nbllm.models.config import ModelConfig
from nbllm.models.families.base import Family
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.families.llama import FREQUENCIES, read_shared, rules, write_shared
from nbllm.models.families.registry import FAMILIES
from nbllm.models.families.shared import LLAMA_DECODER


def read(settings: ConfigReader) -> ModelConfig:
    """Read a MistralConfig; a window of null is none, and where nothing is stated it is transformers' 4096."""
    window = 0 if settings.is_null("sliding_window") else settings.integer("sliding_window", 4096)
    shared = read_shared(settings, max_positions=131072, num_kv_heads=8)
    settings.all_layers(
        "layer_types", "sliding_attention" if window else "full_attention", shared["num_layers"]
    )
    return ModelConfig(
        family="mistral",
        vocab_size=settings.integer("vocab_size", 32000),
        intermediate_size=settings.integer("intermediate_size", 14336),
        sliding_window=window,
        attention_bias=False,
        feed_forward_bias=False,
        **shared,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """Return a MistralConfig's values, readable by older and newer transformers."""
    return {**write_shared(config), "sliding_window": config.sliding_window or None}


FAMILIES.register("mistral")(
    Family(
        name="mistral",
        label="Mistral",
        architecture="MistralForCausalLM",
        base_prefix="model.",
        fixed={
            **LLAMA_DECODER,
            "attention_bias": False,
            "attention_output_bias": True,
            "feed_forward_bias": False,
        },
        varied=frozenset({"sliding_window", "rope_scaling"}),
        read=read,
        write=write,
        rules=rules,
        unused=FREQUENCIES,
    )
)
