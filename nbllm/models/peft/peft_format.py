"""What a method's files look like in peft, and the weight map that relates its modules to ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nbllm.core.errors import UserError, WeightsError, listed
from nbllm.models.families.base import WeightRule
from nbllm.models.families.known import FAMILIES
from nbllm.models.network import Network
from nbllm.models.peft.adapter import Adapter
from nbllm.models.peft.method import AdapterConfig, is_named, linear_layers

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
TASKS = {
    "decoder": "CAUSAL_LM",
    "prefix_decoder": "CAUSAL_LM",
    "rwkv": "CAUSAL_LM",
    "encoder_decoder": "SEQ_2_SEQ_LM",
}
# Settings of every method that say nothing of what an adapter computes beside its tensors.
_COMMON = frozenset(
    "auto_mapping base_model_name_or_path inference_mode peft_type peft_version revision task_type".split()
)

Read = Callable[
    [Network, Mapping[str, Any], dict[str, Tensor], Path], tuple[AdapterConfig, dict[str, Tensor]]
]
Write = Callable[[Network, Adapter], tuple[dict[str, Any], dict[str, Tensor]]]


@dataclasses.dataclass(frozen=True)
class PeftFormat:
    """How one of peft's methods is read and written.

    Attributes:
        peft_type: peft's name for it.
        methods: Ours that are written so.
        read: Makes of a model, a configuration, tensors (by name, without `PREFIX`) and where they come from the
            settings, and the values of the parameters by module and parameter, "blocks.0.attention.query.lora_a".
            It takes the tensors that it has read out of the dictionary.
        write: Makes of a model and an adapter the settings of the configuration and the tensors, by name.
        prefix: What stands before the names of tensors.
    """

    peft_type: str
    methods: tuple[str, ...]
    read: Read
    write: Write
    prefix: str = PREFIX


def module_rules(model: Network) -> dict[str, WeightRule]:
    """Return the entries of the weight map for matrices, by the module of transformers that each belongs to.

    A head that is tied to the embedding is there too, as a module of its own.
    """
    family = FAMILIES[model.config.family]
    out = {
        rule.source.removesuffix(".weight"): dataclasses.replace(rule, transposed=False)
        for rule in family.rules(model.config)
        if all(target.endswith(".weight") for target in rule.targets)
    }
    head = family.head.removesuffix(".weight")
    out.setdefault(head, WeightRule(family.head, ("head.weight",)))
    return out


def is_transposed(model: Network, modules: Mapping[str, Any]) -> bool:
    """Return whether the family stores matrices of these modules as (input, output)."""
    rules = FAMILIES[model.config.family].rules(model.config)
    return any(rule.transposed and rule.source.removesuffix(".weight") in modules for rule in rules)


def names_of(rule: WeightRule) -> list[str]:
    """Return our modules that a rule's tensor holds; the head's updates belong to the network, ""."""
    return [target.removesuffix(".weight") for target in rule.targets]


def path_of(name: str) -> str:
    """Return the module that holds the parts of a layer: those of the head belong to the network."""
    return "" if name == "head" else name


def weight_of(model: Network, name: str) -> Tensor:
    """Return a weight by its name, of a layer in 4 bits too."""
    module, _, kind = name.rpartition(".")
    out: Tensor = getattr(model.get_submodule(module), kind)
    return out


def their_targets(model: Network, modules: Mapping[str, Any]) -> list[str]:
    """Return names for peft's `target_modules`: ends of names where these mean just the modules, else whole names."""
    ends = {module.rpartition(".")[2] for module in modules}
    by_end = set(modules) == {module for module in module_rules(model) if module.rpartition(".")[2] in ends}
    return sorted(ends if by_end else modules)


def our_targets(model: nn.Module, names: list[str]) -> tuple[str, ...]:
    """Return names for `targets`: ends of names where these mean just the layers, else whole names."""
    ends = sorted({name.rpartition(".")[2] for name in names})
    try:
        return tuple(ends) if set(linear_layers(model, ends, "")) == set(names) else tuple(names)
    except UserError:
        return tuple(names)


def of_pattern(pattern: object, module: str, usual: Any) -> Any:
    """Return what a pattern by module says of one of peft's: its keys are names or their ends."""
    if isinstance(pattern, Mapping):
        for key, value in pattern.items():
            end = str(key).lstrip("^").rstrip("$").replace("\\.", ".")
            if is_named(module, end):
                return value
    return usual


def check_settings(config: Mapping[str, Any], known: str, where: Path) -> None:
    """Refuse settings of a configuration that are set and not implemented.

    Args:
        config: The configuration.
        known: Names of the settings that are read, or change nothing, separated by spaces.
        where: Its file.

    Raises:
        WeightsError: There is such a setting.
    """
    allowed = _COMMON | frozenset(known.split())
    for name, value in config.items():
        if name not in allowed and value:
            raise WeightsError(f"The adapter's setting {name} = {value!r} is not implemented.", where=where)


def check_known(model: Network, adapter: Adapter, found: set[str]) -> None:
    """Refuse to write parts for which the family has no module.

    Raises:
        UserError: There are some.
    """
    if missing := sorted(adapter.parts.keys() - found):
        raise UserError(f"The family has no layer of its own for {listed(missing)}; peft could not open it.")
