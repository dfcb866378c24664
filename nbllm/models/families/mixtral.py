"""Mixtral (Jiang et al. 2024, arXiv:2401.04088): Mistral with a mixture of experts in the place of the feed-forward."""

from __future__ import annotations

from typing import Any

from nbllm.models.config import ModelConfig
from nbllm.models.families.base import Family, WeightRule
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.families.llama import FREQUENCIES, read_shared, rules as rules_of_llama, write_shared
from nbllm.models.families.registry import FAMILIES
from nbllm.models.families.shared import LLAMA_DECODER, rules_of

_MATRICES = (("w1", "gate"), ("w3", "up"), ("w2", "down"))


def read(settings: ConfigReader) -> ModelConfig:
    """Read a MixtralConfig; noise for the routers must be off."""
    settings.only("router_jitter_noise", 0.0)
    settings.ignore("output_router_logits")  # what a call returns
    shared = read_shared(settings, max_positions=131072, num_kv_heads=8, rope_theta=1e6)
    shared["norm_eps"] = settings.number("rms_norm_eps", 1e-5)
    return ModelConfig(
        family="mixtral",
        vocab_size=settings.integer("vocab_size", 32000),
        intermediate_size=settings.integer("intermediate_size", 14336),
        sliding_window=settings.integer("sliding_window", 1) if settings.states("sliding_window") else 0,
        num_experts=settings.integer("num_local_experts", 8),
        experts_per_token=settings.integer("num_experts_per_tok", 2),
        router_loss_weight=settings.number("router_aux_loss_coef", 0.001, may_be_zero=True),
        attention_bias=False,
        feed_forward_bias=False,
        **shared,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """Return a MixtralConfig's values, readable by older and newer transformers."""
    return {
        **write_shared(config),
        "sliding_window": config.sliding_window or None,
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
        "router_aux_loss_coef": config.router_loss_weight,
        "output_router_logits": False,
    }


def rules(config: ModelConfig) -> list[WeightRule]:
    """Return the weight map, which is one to one; each expert has files' tensors of its own."""
    dense = [rule for rule in rules_of_llama(config) if ".mlp." not in rule.source]
    names = []
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}.feed_forward", f"model.layers.{layer}.block_sparse_moe"
        names.append((f"{theirs}.gate", f"{ours}.router"))
        names += [
            (f"{theirs}.experts.{expert}.{their}", f"{ours}.experts.{expert}.{our}")
            for expert in range(config.num_experts)
            for their, our in _MATRICES
        ]
    return dense + rules_of(names, bias=False)


def _has_experts(config: ModelConfig) -> str | None:
    return None if config.num_experts else "A mixtral model has num_experts of 1 or more."


FAMILIES.register("mixtral")(
    Family(
        name="mixtral",
        label="Mixtral",
        architecture="MixtralForCausalLM",
        base_prefix="model.",
        fixed={
            **LLAMA_DECODER,
            "attention_bias": False,
            "attention_output_bias": True,
            "feed_forward_bias": False,
        },
        varied=frozenset(
            {"sliding_window", "rope_scaling", "num_experts", "experts_per_token", "router_loss_weight"}
        ),
        read=read,
        write=write,
        rules=rules,
        unused=FREQUENCIES,
        requirements=(_has_experts,),
    )
)
