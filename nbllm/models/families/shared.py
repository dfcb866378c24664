"""What several families have in common: fixed settings, conditions, weight maps, rotary settings."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from nbllm.core.errors import WeightsError
from nbllm.models.config import ModelConfig
from nbllm.models.families.base import WeightRule
from nbllm.models.families.config_reader import ConfigReader
from nbllm.nn.positions import RopeScaling

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


def multiple_of_heads(config: ModelConfig) -> str | None:
    """Return what is wrong where hidden_size is no multiple of num_heads, which transformers demands."""
    if config.hidden_size % config.num_heads:
        return (
            f"transformers wants hidden_size ({config.hidden_size}) of {config.family} to be a multiple of "
            f"num_heads ({config.num_heads}), head_dim or not."
        )
    return None


def read_layer_types(
    settings: ConfigReader, num_layers: int, *, window: int, interval: int
) -> dict[str, Any]:
    """Return `sliding_window` and `full_attention_interval`.

    Args:
        settings: The configuration.
        num_layers: Layers.
        window: Where none is stated.
        interval: Every how many layers one sees all keys, where `layer_types` says nothing else.

    Raises:
        WeightsError: Layers that see all keys do not come at equal intervals.
    """
    size = settings.integer("sliding_window", window)
    types = settings.texts("layer_types", num_layers)
    if types is None:
        types = _layer_types(interval, num_layers)
    if set(types) == {"full_attention"}:
        return {"sliding_window": 0, "full_attention_interval": 0}
    for each in (interval, *range(2, num_layers + 1), 0):
        if types == _layer_types(each, num_layers):
            return {"sliding_window": size, "full_attention_interval": each}
    raise WeightsError(
        f"layer_types is {types!r}; nbllm implements full attention at equal intervals only.",
        where=settings.where("layer_types"),
    )


def write_layer_types(config: ModelConfig, *, window: int) -> dict[str, Any]:
    """Return the settings of a sliding window in some layers; `window`: what to state where there is none."""
    interval = config.full_attention_interval if config.sliding_window else 1
    return {
        "sliding_window": config.sliding_window or window,
        "layer_types": _layer_types(interval, config.num_layers),
    }


def _layer_types(interval: int, num_layers: int) -> list[str]:
    """Return the types of layers of which each `interval`-th sees all keys; 0: none does."""
    return [
        "full_attention" if interval and (layer + 1) % interval == 0 else "sliding_attention"
        for layer in range(num_layers)
    ]


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
    settings: ConfigReader,
    *,
    max_positions: int,
    theta: str = "rope_theta",
    usual_theta: float = 10000.0,
    fraction: str = "",
    usual_fraction: float = 1.0,
    new: ConfigReader | None = None,
) -> dict[str, Any]:
    """Return the settings of rotary positions, from old spellings (`rope_scaling`) or new (`rope_parameters`).

    Args:
        settings: The configuration.
        max_positions: Where nothing is stated.
        theta: The old setting of the base.
        usual_theta: That base where nothing is stated.
        fraction: The old setting of the part that is rotated; empty: it is all.
        usual_fraction: That part where nothing is stated.
        new: What stands in the place of `rope_parameters`, where those are of several kinds of layers.

    Returns:
        `max_positions`, `rope_theta`, `rotary_fraction` and `rope_scaling`.

    Raises:
        WeightsError: A scaling is not known, or both spellings state different ones.
    """
    stated = settings.integer("max_position_embeddings", max_positions)
    out: dict[str, Any] = {
        "max_positions": stated,
        "rope_theta": settings.number(theta, usual_theta),
        "rotary_fraction": settings.number(fraction, usual_fraction, most=1.0) if fraction else 1.0,
        "rope_scaling": None,
    }
    old = ConfigReader(settings.mapping("rope_scaling"), settings.where("rope_scaling"))
    if new is None:
        new = ConfigReader(settings.mapping("rope_parameters"), settings.where("rope_parameters"))
    for reader in (old, new):
        out["rope_theta"] = reader.number("rope_theta", out["rope_theta"])
        if fraction:
            out["rotary_fraction"] = reader.number("partial_rotary_factor", out["rotary_fraction"], most=1.0)
        else:
            reader.only("partial_rotary_factor", 1.0)
        scaling = _read_scaling(reader, stated)
        reader.finish()
        states = reader.states("rope_type") or reader.states("type")
        if states and out["rope_scaling"] not in (None, scaling):
            raise WeightsError(
                "rope_scaling and rope_parameters differ.", where=settings.where("rope_parameters")
            )
        out["rope_scaling"] = out["rope_scaling"] or scaling
    if out["rope_scaling"] is not None and out["rope_scaling"].kind == "dynamic":
        # transformers calls the context before scaling so.
        out["max_positions"] = out["rope_scaling"].max_positions
    return out


def _read_scaling(nested: ConfigReader, max_positions: int) -> RopeScaling | None:
    """Return the scaling that `rope_scaling` or `rope_parameters` states."""
    kinds = {kind: kind for kind in ("default", "linear", "dynamic", "yarn", "llama3")}
    kind = nested.choice("rope_type", nested.choice("type", "default", kinds), kinds)
    if kind == "default":
        return None
    for name in ("factor", "low_freq_factor", "high_freq_factor")[: 3 if kind == "llama3" else 1]:
        if not nested.states(name):
            raise WeightsError(f"{name} is not stated; {kind!r} needs it.", where=nested.where(name))
    values: dict[str, Any] = {"kind": kind, "factor": nested.number("factor", 1.0)}
    if kind == "dynamic":
        nested.ignore("original_max_position_embeddings")  # transformers reads max_position_embeddings
        values["original_max_positions"] = max_positions
    elif kind != "linear":
        values["original_max_positions"] = nested.integer("original_max_position_embeddings", max_positions)
    if kind == "llama3":
        values |= {name: nested.number(name, 1.0) for name in ("low_freq_factor", "high_freq_factor")}
    if kind == "yarn":
        values |= {
            "beta_fast": nested.number("beta_fast", 32.0),
            "beta_slow": nested.number("beta_slow", 1.0),
            "truncate": nested.flag("truncate", True),
        }
        values["attention_factor"] = _read_attention_factor(nested, values["factor"])
    return RopeScaling(**values)


def _read_attention_factor(nested: ConfigReader, factor: float) -> float:
    """Return what YaRN multiplies cosines and sines by; 0: the usual."""
    scales = [nested.number(name, 1.0) for name in ("mscale", "mscale_all_dim") if nested.states(name)]
    for name in ("mscale", "mscale_all_dim"):  # null: not stated
        nested.ignore(name)
    usual = 0.0
    if len(scales) == 2:  # as DeepSeek's models state them
        above, below = (0.1 * scale * math.log(factor) + 1 for scale in scales)
        usual = above / below
    return nested.number("attention_factor", usual) if usual or nested.states("attention_factor") else 0.0


def write_rope(config: ModelConfig, *, theta: str = "rope_theta") -> dict[str, Any]:
    """Return the settings of rotary positions, old and new; `theta` is the old setting of the base."""
    values: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    out: dict[str, Any] = {
        "max_position_embeddings": config.max_positions,
        theta: config.rope_theta,
        "rope_parameters": values,
    }
    scaling = config.rope_scaling
    if scaling is not None:
        of_scaling: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "dynamic":
            out["max_position_embeddings"] = scaling.original_max_positions
        elif scaling.kind != "linear":
            of_scaling["original_max_position_embeddings"] = scaling.original_max_positions
        for name in ("attention_factor", "beta_fast", "beta_slow", "truncate"):
            if scaling.kind == "yarn":
                of_scaling[name] = getattr(scaling, name)
        for name in ("low_freq_factor", "high_freq_factor"):
            if scaling.kind == "llama3":
                of_scaling[name] = getattr(scaling, name)
        values |= of_scaling
        out["rope_scaling"] = of_scaling
    if config.rotary_fraction != 1:
        values["partial_rotary_factor"] = config.rotary_fraction
    return out
