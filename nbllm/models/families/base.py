"""What a family is: a map of configurations and a map of weight names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from nbllm.core.errors import UserError
from nbllm.models.config import ModelConfig
from nbllm.models.families.config_reader import ConfigReader
from nbllm.nn.activations import ACTIVATIONS as TABLE


@dataclasses.dataclass(frozen=True)
class WeightRule:
    """Which parameters of ours one of a family's tensors holds.

    Attributes:
        source: The family's tensor.
        targets: Our parameters; where there are several, its rows are theirs, in order.
        transposed: Whether the family stores (in, out) where we have (out, in).
    """

    source: str
    targets: tuple[str, ...]
    transposed: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A Hugging Face family.

    Attributes:
        name: Its `model_type`.
        architecture: The transformers class of its language model.
        base_prefix: What the class puts before the names of all weights but the head.
        fixed: Settings of `ModelConfig` that this family cannot vary.
        read: Reads a configuration; must leave no setting that matters unread.
        write: The family's configuration file for a model.
        rules: The weight map for a configuration.
        unused: A pattern of tensors that old files carry and nothing reads: masks, frequencies.
        requirements: Further conditions: each returns what is wrong, or None.
    """

    name: str
    architecture: str
    base_prefix: str
    fixed: Mapping[str, Any]
    read: Callable[[ConfigReader], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    rules: Callable[[ModelConfig], list[WeightRule]]
    unused: re.Pattern[str]
    requirements: tuple[Callable[[ModelConfig], str | None], ...] = ()

    def check(self, config: ModelConfig) -> None:
        """Raise `UserError` unless the family can express `config`."""
        for name, value in self.fixed.items():
            if getattr(config, name) != value:
                raise UserError(
                    f"A {self.name} model has {name}={value!r}, not {getattr(config, name)!r}.",
                    where=f"family {self.name!r}",
                    hint="Choose another family, or leave this setting.",
                )
        for requirement in self.requirements:
            problem = requirement(config)
            if problem is not None:
                raise UserError(problem, where=f"family {self.name!r}")

    def canonical(self, name: str) -> str:
        """Return a tensor's full name: files of a model without its head lack the prefix."""
        if name.startswith(self.base_prefix) or name == HEAD:
            return name
        return self.base_prefix + name


HEAD = "lm_head.weight"

# transformers' names of activations to ours, and back: to the first that transformers has for each.
ACTIVATIONS = {theirs: ours for ours, entry in TABLE.items() for theirs in entry.transformers_names}
ACTIVATION_NAMES = {ours: entry.transformers_names[0] for ours, entry in TABLE.items()}
