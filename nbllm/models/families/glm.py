"""GLM-4 (GLM Team 2024, arXiv:2406.12793): LLaMA with half of each head rotated, neighbour by neighbour."""

from __future__ import annotations

from typing import Any

from nbllm.models.config import ModelConfig
from nbllm.models.families.base import HEAD, Family, WeightRule
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.families.llama import FREQUENCIES, read_shared, write_shared
from nbllm.models.families.registry import FAMILIES
from nbllm.models.families.shared import LLAMA_DECODER, rules_of


def read(settings: ConfigReader) -> ModelConfig:
    """Read a GlmConfig."""
    shared = read_shared(
        settings, max_positions=131072, num_kv_heads=2, head_dim=128, fraction="partial_rotary_factor"
    )
    shared["norm_eps"] = settings.number("rms_norm_eps", 1.5625e-7)
    return ModelConfig(
        family="glm",
        vocab_size=settings.integer("vocab_size", 151552),
        intermediate_size=settings.integer("intermediate_size", 13696),
        attention_bias=settings.flag("attention_bias", True),
        attention_output_bias=False,
        feed_forward_bias=False,
        rotary_interleaved=True,
        **shared,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """Return a GlmConfig's values, readable by older and newer transformers."""
    return {
        **write_shared(config),
        "attention_bias": config.attention_bias,
        "partial_rotary_factor": config.rotary_fraction,
    }


def rules(config: ModelConfig) -> list[WeightRule]:
    """Return the weight map; gate and up come in one matrix."""
    out = [WeightRule("model.embed_tokens.weight", ("embedding.weight",))]
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}", f"model.layers.{layer}"
        out += rules_of(
            [
                (f"{theirs}.self_attn.{part[0]}_proj", f"{ours}.attention.{part}")
                for part in ("query", "key", "value")
            ],
            bias=config.attention_bias,
        )
        out += rules_of(
            [
                (f"{theirs}.self_attn.o_proj", f"{ours}.attention.output"),
                (f"{theirs}.input_layernorm", f"{ours}.attention_norm"),
                (f"{theirs}.post_attention_layernorm", f"{ours}.feed_forward_norm"),
                (f"{theirs}.mlp.gate_up_proj", (f"{ours}.feed_forward.gate", f"{ours}.feed_forward.up")),
                (f"{theirs}.mlp.down_proj", f"{ours}.feed_forward.down"),
            ],
            bias=False,
        )
    out += rules_of([("model.norm", "norm")], bias=False)
    if not config.tie_embeddings:
        out.append(WeightRule(HEAD, ("head.weight",)))
    return out


FAMILIES.register("glm")(
    Family(
        name="glm",
        label="GLM",
        architecture="GlmForCausalLM",
        base_prefix="model.",
        fixed={
            **LLAMA_DECODER,
            "rotary_interleaved": True,
            "attention_output_bias": False,
            "feed_forward_bias": False,
        },
        varied=frozenset({"rotary_fraction", "rope_scaling"}),
        read=read,
        write=write,
        rules=rules,
        unused=FREQUENCIES,
    )
)
