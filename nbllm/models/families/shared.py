"""What several families have in common: fixed settings, conditions, weight maps, rotary settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nbllm.models.config import ModelConfig
from nbllm.models.families.base import WeightRule
from nbllm.models.families.config_reader import ConfigReader

LAYER_NORM_DECODER: dict[str, Any] = {"network": "decoder", "norm": "layer_norm", "gated": False}
LLAMA_DECODER: dict[str, Any] = {
    "network": "decoder",
    "positions": "rotary",
    "norm": "rms_norm",
    "gated": True,
}


def plain_heads(config: ModelConfig) -> str | None:
    """Return what is wrong with the heads of a family that can neither group them nor choose their width."""
    if config.num_kv_heads != config.num_heads:
        return f"Models of the family {config.family} have as many key/value heads as query heads."
    return usual_head_dim(config)


def usual_head_dim(config: ModelConfig) -> str | None:
    """Return what is wrong where the width of a head is not hidden_size / num_heads."""
    if config.head_dim * config.num_heads != config.hidden_size:
        return f"Models of the family {config.family} have head_dim = hidden_size / num_heads."
    return None


def read_full_attention(settings: ConfigReader) -> None:
    """Read the switch of Qwen's sliding window, which must be off: attention sees the whole context."""
    settings.only("use_sliding_window", False)
    for unused in ("sliding_window", "max_window_layers"):  # without use_sliding_window they say nothing
        settings.ignore(unused)


def rules_of(
    names: Iterable[tuple[str, str | tuple[str, ...]]], *, bias: bool, heads: int = 1
) -> list[WeightRule]:
    """Return the rules of modules, by their names and ours: their weights and, where they have them, biases.

    Args:
        names: The family's module and ours, or those of ours that it fuses.
        bias: Whether they have biases.
        heads: As `WeightRule` takes it.
    """
    out = []
    for theirs, ours in names:
        modules = (ours,) if isinstance(ours, str) else ours
        for kind in ("weight", "bias") if bias else ("weight",):
            targets = tuple(f"{module}.{kind}" for module in modules)
            out.append(WeightRule(f"{theirs}.{kind}", targets, heads=heads))
    return out


def read_rope(
    settings: ConfigReader, *, theta: str = "rope_theta", fraction: str = "", usual_fraction: float = 1.0
) -> dict[str, Any]:
    """Return `rope_theta` and `rotary_fraction`, from old settings or new (`rope_parameters`); refuse every scaling.

    Args:
        settings: The configuration.
        theta: The old setting of the base.
        fraction: The old setting of the part that is rotated; empty: it is all.
        usual_fraction: That part where nothing is stated.
    """
    base = settings.number(theta, 10000.0)
    part = settings.number(fraction, usual_fraction, most=1.0) if fraction else 1.0
    for key in ("rope_scaling", "rope_parameters"):
        nested = ConfigReader(settings.mapping(key), settings.where(key))
        for kind in ("rope_type", "type"):
            nested.only(kind, "default")
        if fraction:
            part = nested.number("partial_rotary_factor", part, most=1.0)
        else:
            nested.only("partial_rotary_factor", 1.0)
        base = nested.number("rope_theta", base)
        nested.finish()
    return {"rope_theta": base, "rotary_fraction": part}


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """Return the new setting of rotary positions, with the part of a head that is rotated."""
    return {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.rope_theta,
            "partial_rotary_factor": config.rotary_fraction,
        }
    }
