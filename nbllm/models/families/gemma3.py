"""Gemma 3 (Gemma Team 2025, arXiv:2503.19786), its text models: one layer in six sees all, by a base of its own."""

from __future__ import annotations

from typing import Any

from nbllm.models.config import ModelConfig
from nbllm.models.families.base import Family
from nbllm.models.families.config_reader import ConfigReader
from nbllm.models.families.gemma2 import (
    GEMMA_DECODER,
    read_shared,
    read_softcap,
    rules,
    whole_divisor,
    write_shared,
)
from nbllm.models.families.llama import FREQUENCIES
from nbllm.models.families.registry import FAMILIES
from nbllm.models.families.shared import (
    multiple_of_heads,
    read_layer_types,
    read_rope,
    write_layer_types,
    write_rope,
)

_INTERVAL = 6
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


def read(settings: ConfigReader) -> ModelConfig:
    """Read a Gemma3TextConfig, old (`rope_local_base_freq`) or new (`rope_parameters` of each kind of layer)."""
    shared = read_shared(settings)
    settings.only("attn_logit_softcapping", None)  # transformers does not apply it
    interval = settings.integer("_sliding_window_pattern", _INTERVAL)  # as transformers writes it
    interval = settings.integer("sliding_window_pattern", interval)
    layers = read_layer_types(settings, shared["num_layers"], window=4096, interval=interval)
    of_layers = ConfigReader(settings.mapping("rope_parameters"), settings.where("rope_parameters"))
    local = ConfigReader(of_layers.mapping(_LOCAL), of_layers.where(_LOCAL))
    for name in ("rope_type", "type"):
        local.only(name, "default")
    local_theta = local.number("rope_theta", settings.number("rope_local_base_freq", 10000.0))
    local.only("partial_rotary_factor", 1.0)
    local.finish()
    rope = read_rope(
        settings,
        max_positions=131072,
        usual_theta=1e6,
        new=ConfigReader(of_layers.mapping(_GLOBAL), of_layers.where(_GLOBAL)),
    )
    of_layers.finish()
    return ModelConfig(
        family="gemma3_text",
        vocab_size=settings.integer("vocab_size", 262208),
        logit_softcap=read_softcap(settings, "final_logit_softcapping", 0.0),
        qk_norm=True,
        rope_local_theta=local_theta if layers["sliding_window"] else 0.0,
        **layers,
        **rope,
        **shared,
        **GEMMA_DECODER,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """Return a Gemma3TextConfig's values, readable by older and newer transformers."""
    rope = write_rope(config)
    local = config.rope_local_theta or 10000.0
    return {
        **write_shared(config),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": config.logit_softcap or None,
        **write_layer_types(config, window=4096),
        "sliding_window_pattern": config.full_attention_interval or _INTERVAL,
        **rope,
        "rope_local_base_freq": local,
        "rope_parameters": {
            _GLOBAL: rope["rope_parameters"],
            _LOCAL: {"rope_type": "default", "rope_theta": local},
        },
    }


def _local_base(config: ModelConfig) -> str | None:
    if bool(config.rope_local_theta) != bool(config.sliding_window):
        return "In a gemma3_text model, layers with a sliding_window have their own rope_local_theta."
    return None


FAMILIES.register("gemma3_text")(
    Family(
        name="gemma3_text",
        label="Gemma 3",
        architecture="Gemma3ForCausalLM",
        base_prefix="model.",
        fixed={**GEMMA_DECODER, "qk_norm": True},
        varied=frozenset(
            {
                "attention_scale", "logit_softcap", "sliding_window", "full_attention_interval", "rope_scaling",
                "rope_local_theta",
            }
        ),
        read=read,
        write=write,
        rules=rules,
        scoring={},
        unused=FREQUENCIES,
        requirements=(whole_divisor, multiple_of_heads, _local_base),
    )
)  # fmt: skip
