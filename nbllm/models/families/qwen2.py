"""Qwen2 (Yang et al. 2024, arXiv:2407.10671): LLaMA with biases of queries, keys and values alone."""

from __future__ import annotations

from typing import Any

from nbllm.models.config import ModelConfig
from nbllm.models.families.base import Family
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.families.llama import FREQUENCIES, read_shared, rules, write_shared
from nbllm.models.families.registry import FAMILIES
from nbllm.models.families.shared import LLAMA_DECODER, read_full_attention


def read(settings: ConfigReader) -> ModelConfig:
    """Read a Qwen2Config, whose attention must see the whole context."""
    read_full_attention(settings)
    shared = read_shared(settings, max_positions=32768)
    settings.all_layers("layer_types", "full_attention", shared["num_layers"])
    return ModelConfig(
        family="qwen2",
        vocab_size=settings.integer("vocab_size", 151936),
        intermediate_size=settings.integer("intermediate_size", 22016),
        attention_bias=True,
        attention_output_bias=False,
        feed_forward_bias=False,
        **shared,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """Return a Qwen2Config's values, readable by older and newer transformers."""
    return {**write_shared(config), "use_sliding_window": False}


FAMILIES.register("qwen2")(
    Family(
        name="qwen2",
        label="Qwen2",
        architecture="Qwen2ForCausalLM",
        base_prefix="model.",
        fixed={
            **LLAMA_DECODER,
            "attention_bias": True,
            "attention_output_bias": False,
            "feed_forward_bias": False,
        },
        varied=frozenset({"rope_scaling"}),
        read=read,
        write=write,
        rules=rules,
        unused=FREQUENCIES,
    )
)
