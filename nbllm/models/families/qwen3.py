"""Qwen3 (Yang et al. 2025, arXiv:2505.09388): LLaMA whose queries and keys are normalized, head by head."""

from __future__ import annotations

from typing import Any

from nbllm.models.config import ModelConfig
from nbllm.models.families.base import Family, WeightRule
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.families.llama import FREQUENCIES, read_shared, rules as rules_of_llama, write_shared
from nbllm.models.families.registry import FAMILIES
from nbllm.models.families.shared import LLAMA_DECODER, read_full_attention, rules_of


def read(settings: ConfigReader) -> ModelConfig:
    """Read a Qwen3Config, whose attention must see the whole context."""
    read_full_attention(settings)
    shared = read_shared(settings, max_positions=32768, num_kv_heads=32, head_dim=128)
    settings.all_layers("layer_types", "full_attention", shared["num_layers"])
    return ModelConfig(
        family="qwen3",
        vocab_size=settings.integer("vocab_size", 151936),
        intermediate_size=settings.integer("intermediate_size", 22016),
        attention_bias=settings.flag("attention_bias", False),
        feed_forward_bias=False,
        qk_norm=True,
        **shared,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """Return a Qwen3Config's values, readable by older and newer transformers."""
    return {**write_shared(config), "attention_bias": config.attention_bias, "use_sliding_window": False}


def rules(config: ModelConfig) -> list[WeightRule]:
    """Return the weight map, which is one to one."""
    norms = [
        (f"model.layers.{layer}.self_attn.{their}", f"blocks.{layer}.attention.{our}")
        for layer in range(config.num_layers)
        for their, our in (("q_norm", "query_norm"), ("k_norm", "key_norm"))
    ]
    return rules_of_llama(config) + rules_of(norms, bias=False)


FAMILIES.register("qwen3")(
    Family(
        name="qwen3",
        label="Qwen3",
        architecture="Qwen3ForCausalLM",
        base_prefix="model.",
        fixed={
            **LLAMA_DECODER,
            "qk_norm": True,
            "attention_output_bias": True,
            "feed_forward_bias": False,
        },
        varied=frozenset({"rope_scaling"}),
        read=read,
        write=write,
        rules=rules,
        unused=FREQUENCIES,
    )
)
