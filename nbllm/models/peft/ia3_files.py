"""(IA)3 in peft's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from nbllm.core.errors import UserError, WeightsError
from nbllm.models.network import Network
from nbllm.models.peft.adapter import Adapter
from nbllm.models.peft.ia3 import IA3, Scaling
from nbllm.models.peft.peft_format import (
    TASKS,
    PeftFormat,
    check_known,
    check_settings,
    is_transposed,
    module_rules,
    names_of,
    our_targets,
    their_targets,
    weight_of,
)

_KNOWN = "exclude_modules fan_in_fan_out feedforward_modules init_ia3_weights target_modules"


def read(
    model: Network, config: Mapping[str, Any], tensors: dict[str, Tensor], where: Path
) -> tuple[IA3, dict[str, Tensor]]:
    """Return settings and values; see `PeftFormat`."""
    check_settings(config, _KNOWN, where)
    values: dict[str, Tensor] = {}
    of_input: list[str] = []
    for module, rule in module_rules(model).items():
        vector = tensors.pop(f"{module}.ia3_l", None)
        if vector is None:
            continue
        names = names_of(rule)
        weights = [weight_of(model, target) for target in rule.targets]
        rows, inputs = [len(weight) for weight in weights], weights[0].shape[-1]
        if vector.shape == (1, inputs):
            parts = [vector.flatten()] * len(names)
            of_input += names
        elif vector.shape == (sum(rows), 1):
            parts = [part.flatten() for part in rule.split(vector, rows)]
        else:
            raise WeightsError(f"The vector of {module} has the shape {tuple(vector.shape)}.", where=where)
        values |= {f"{name}.factor": part for name, part in zip(names, parts, strict=True)}
    names = [key.removesuffix(".factor") for key in values]
    if not names:
        raise WeightsError("The adapter does not belong to this model: it has nothing for it.", where=where)
    feed_forward = our_targets(model, of_input) if of_input else ()
    return IA3(targets=our_targets(model, names), feed_forward=feed_forward), values


def write(model: Network, adapter: Adapter) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return configuration and tensors; see `PeftFormat`."""
    tensors: dict[str, Tensor] = {}
    of_input: dict[str, Tensor] = {}
    found: set[str] = set()
    for module, rule in module_rules(model).items():
        names = names_of(rule)
        present = {name: cast(Scaling, adapter.parts[name]) for name in names if name in adapter.parts}
        if not present:
            continue
        found |= set(present)
        first = next(iter(present.values()))
        if first.of_input and len(names) > 1:
            raise UserError("peft scales the input of all layers of a tensor alike.", where=module)
        if first.of_input:
            of_input[module] = vector = first.factor.detach().cpu()[None]
        else:  # a layer of the tensor that is no target is multiplied by 1
            parts = [
                present[name].factor.detach().cpu()
                if name in present
                else torch.ones(len(weight_of(model, target)))
                for name, target in zip(names, rule.targets, strict=True)
            ]
            vector = rule.join([part[:, None] for part in parts])
        tensors[f"{module}.ia3_l"] = vector
    check_known(model, adapter, found)
    modules = {name.removesuffix(".ia3_l"): each for name, each in tensors.items()}
    config = {
        "peft_type": "IA3",
        "task_type": TASKS.get(model.config.network),
        "target_modules": their_targets(model, modules),
        "feedforward_modules": their_targets(model, of_input) if of_input else [],
        "fan_in_fan_out": is_transposed(model, modules),
        "init_ia3_weights": True,
    }
    return config, tensors


FORMAT = PeftFormat("IA3", ("ia3",), read, write)
