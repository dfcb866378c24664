"""LoRA and DoRA in peft's files.

A family's tensor may hold several layers of ours (GPT-2's c_attn: query, key and value). The update of such a tensor is
read as one update of each layer, which share `lora_a`; written, the updates of its layers become one. Where they do not
share `lora_a`, its rank is the sum of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from nbllm.core.errors import UserError, WeightsError
from nbllm.models.families.base import WeightRule
from nbllm.models.network import Network
from nbllm.models.peft.adapter import Adapter
from nbllm.models.peft.head import EMBEDDING, HEAD
from nbllm.models.peft.lora import LoRA, LowRank
from nbllm.models.peft.peft_format import (
    CONFIG,
    TASKS,
    PeftFormat,
    check_known,
    check_settings,
    is_transposed,
    module_rules,
    names_of,
    of_pattern,
    our_targets,
    path_of,
    their_targets,
    weight_of,
)

# Read below, or of no effect once the tensors are there.
_KNOWN = """
    alpha_pattern ensure_weight_tying eva_config exclude_modules fan_in_fan_out init_lora_weights layers_pattern
    layers_to_transform lora_alpha lora_dropout megatron_core qalora_group_size r rank_pattern runtime_config
    target_modules use_rslora use_dora
"""
_PLAIN_STARTS = (
    True,
    False,
    None,
    "gaussian",
    "eva",
    "orthogonal",
)  # that leave the base's weights as they are
_OF_EMBEDDING = ("lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
_OF_LINEAR = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")


def read(
    model: Network, config: Mapping[str, Any], tensors: dict[str, Tensor], where: Path
) -> tuple[LoRA, dict[str, Tensor]]:
    """Return settings and values; see `PeftFormat`."""
    _check(config, where.parent / CONFIG)
    is_dora = config.get("use_dora") is True
    values: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float | int] = {}
    fused = False
    for module, rule in module_rules(model).items():
        names = names_of(rule)
        kinds = _OF_EMBEDDING if names == [EMBEDDING] else _OF_LINEAR
        a, b, magnitude = (tensors.pop(f"{module}.{kind}", None) for kind in kinds)
        if a is None and b is None:
            continue
        if a is None or b is None or (is_dora and magnitude is None):
            raise WeightsError(f"Of {module} one of the tensors is missing.", where=where)
        rows = _check_shapes(model, rule, a, b, module, where)
        alpha = _alpha(config, module, len(a), where)
        fused = fused or len(names) > 1
        parts = rule.split(b, rows)
        magnitudes = [None] * len(rows) if magnitude is None else rule.split(magnitude.view(-1, 1), rows)
        for name, part, row_norms in zip(names, parts, magnitudes, strict=True):
            key = f"{path_of(name)}.".lstrip(".")
            if not fused or name == names[0]:
                values[f"{key}lora_a"] = a
            values[f"{key}lora_b"] = part
            if row_norms is not None:
                values[f"{key}magnitude"] = row_norms.flatten()
            ranks[name], alphas[name] = len(a), alpha
    return _settings(model, config, ranks, alphas, fused=fused, where=where), values


def write(model: Network, adapter: Adapter) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return configuration and tensors; see `PeftFormat`."""
    settings = cast(LoRA, adapter.config)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float | int] = {}
    found: set[str] = set()
    for module, rule in module_rules(model).items():
        names = names_of(rule)
        present = [name for name in names if path_of(name) in adapter.parts]
        if not present:
            continue
        if names == [EMBEDDING] and model.config.network == "encoder_decoder":
            raise UserError("peft cannot adapt the embedding that encoder and decoder share.")
        found |= {path_of(name) for name in present}
        parts = [cast(LowRank, adapter.parts[path_of(name)]) for name in present]
        a, b, magnitude = _joined(model, rule, names, dict(zip(present, parts, strict=True)))
        kinds = _OF_EMBEDDING if names == [EMBEDDING] else _OF_LINEAR
        tensors[f"{module}.{kinds[0]}"], tensors[f"{module}.{kinds[1]}"] = a, b
        if magnitude is not None:
            tensors[f"{module}.{kinds[2]}"] = magnitude
        ranks[module] = len(a)
        scale = parts[0].scale
        alpha = scale * (math.sqrt(len(a)) if settings.rank_stabilized else len(a))
        alphas[module] = round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha
    check_known(model, adapter, found)
    first = next(iter(ranks))
    alike = len(set(ranks.values())) == 1 and len(set(alphas.values())) == 1
    config = {
        "peft_type": "LORA",
        "task_type": TASKS.get(model.config.network),
        "r": ranks[first],
        "lora_alpha": alphas[first],
        "use_rslora": settings.rank_stabilized,
        "use_dora": settings.dora,
        "target_modules": their_targets(model, ranks),
        "rank_pattern": {} if alike else ranks,
        "alpha_pattern": {} if alike else alphas,
        "fan_in_fan_out": is_transposed(model, ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
    }
    return config, tensors


FORMAT = PeftFormat("LORA", ("lora", "qlora"), read, write)


def _check(config: Mapping[str, Any], where: Path) -> None:
    plain = {name: value for name, value in config.items() if not (name == "bias" and value == "none")}
    check_settings(plain, _KNOWN, where)
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise WeightsError(
            f"The adapter belongs to weights changed by init_lora_weights={start!r}.", where=where
        )


def _check_shapes(
    model: Network, rule: WeightRule, a: Tensor, b: Tensor, module: str, where: Path
) -> list[int]:
    """Return the outputs of each of a rule's layers; refuse matrices that do not fit."""
    names = names_of(rule)
    if names == [HEAD]:
        weights: list[Tensor] = [cast(Any, model).head_weight]
    else:
        weights = [weight_of(model, target) for target in rule.targets]
    if names == [EMBEDDING]:
        weights = [weights[0].t()]
    rows = [len(weight) for weight in weights]
    rank = len(a)
    if a.shape != (rank, weights[0].shape[-1]) or b.shape != (sum(rows), rank) or rank == 0:
        raise WeightsError(
            f"The update of {module} has the shapes {tuple(a.shape)} and {tuple(b.shape)}, which do not fit.",
            where=where,
        )
    return rows


def _alpha(config: Mapping[str, Any], module: str, rank: int, where: Path) -> float | int:
    alpha = of_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", rank))
    stated = of_pattern(config.get("rank_pattern"), module, config.get("r", rank))
    if stated != rank or isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise WeightsError(
            f"The update of {module} has rank {rank}; {CONFIG} says {stated!r}, and alpha {alpha!r}.",
            where=where,
        )
    return alpha


def _settings(
    model: Network,
    config: Mapping[str, Any],
    ranks: Mapping[str, int],
    alphas: Mapping[str, float | int],
    *,
    fused: bool,
    where: Path,
) -> LoRA:
    if not ranks:
        raise WeightsError(
            "The adapter does not belong to this model: it has nothing for any of its layers.",
            where=where,
            hint="Open the model that it was trained on.",
        )
    layers = [name for name in ranks if name not in (EMBEDDING, HEAD)]
    rank, alpha = (max(each.values(), key=list(each.values()).count) for each in (ranks, alphas))
    return LoRA(
        rank=int(rank),
        alpha=alpha,
        targets=(
            *(our_targets(model, layers) if layers else ()),
            *(n for n in (EMBEDDING, HEAD) if n in ranks),
        ),
        rank_stabilized=config.get("use_rslora") is True,
        dora=config.get("use_dora") is True,
        rank_pattern={name: each for name, each in ranks.items() if each != rank},
        alpha_pattern={name: each for name, each in alphas.items() if each != alpha},
        fused=fused,
    )


def _joined(
    model: Network, rule: WeightRule, names: list[str], parts: Mapping[str, LowRank]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the matrices and magnitudes of the update of a family's tensor, of those of its layers."""
    held = list(parts.values())
    shared = len(names) > 1 and all(part.lora_a is held[0].lora_a for part in held)
    ranks = [len(part.lora_a) for part in held]
    rows, magnitudes = [], []
    for target, name in zip(rule.targets, names, strict=True):
        part = parts.get(name)
        if part is not None and (shared or len(held) == 1):
            b = part.lora_b.detach().cpu()
        else:
            outputs = len(weight_of(model, target))
            b = torch.zeros(outputs, ranks[0] if shared else sum(ranks), dtype=held[0].lora_b.dtype)
            if part is not None:
                at = sum(ranks[: list(parts).index(name)])
                b[:, at : at + len(part.lora_a)] = part.lora_b.detach().cpu()
        rows.append(b)
        if held[0].magnitude is not None:  # a row without update has the norm that it had
            norms = weight_of(model, target).norm(dim=1) if part is None else cast(Tensor, part.magnitude)
            magnitudes.append(norms.detach().cpu()[:, None])
    a = [held[0].lora_a] if shared else [part.lora_a for part in held]
    magnitude = rule.join(magnitudes)[:, 0] if magnitudes else None
    return torch.cat([each.detach().cpu() for each in a]), rule.join(rows), magnitude
