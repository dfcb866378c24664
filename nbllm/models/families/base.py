"""What a family is: a map of configurations and a map of weight names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from nbllm.core.errors import UserError
from nbllm.models.config import ModelConfig, check_fixed
from nbllm.models.families.config_reader import ConfigReader
from nbllm.nn.activations import ACTIVATIONS as TABLE

HEAD = "lm_head.weight"


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
        headless: The class without the language model's head, where a model may lack that.
        base_prefix: What the class puts before the names of all weights but the head's.
        head: The head's matrix.
        of_head: A pattern of the names of the head's weights.
        optional: Settings of `ModelConfig` that a configuration file does not state, each with the tensor whose
            presence does.
        other_heads: A pattern of tensors of heads for other tasks, which are left out with a warning.
        fixed: Settings of `ModelConfig` that this family cannot vary.
        read: Reads a configuration; must leave no setting that matters unread.
        write: The family's configuration file for a model.
        rules: The weight map for a configuration.
        unused: A pattern of tensors that old files carry and nothing reads: masks, frequencies.
        requirements: Further conditions: each returns what is wrong, or None.
    """

    name: str
    architecture: str
    headless: str = ""
    base_prefix: str
    head: str = HEAD
    of_head: re.Pattern[str] = re.compile(re.escape(HEAD))
    optional: Mapping[str, str] = dataclasses.field(default_factory=dict)
    other_heads: re.Pattern[str] | None = None
    fixed: Mapping[str, Any]
    read: Callable[[ConfigReader], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    rules: Callable[[ModelConfig], list[WeightRule]]
    unused: re.Pattern[str]
    requirements: tuple[Callable[[ModelConfig], str | None], ...] = ()

    def check(self, config: ModelConfig) -> None:
        """Raise `UserError` unless the family can express `config`."""
        check_fixed(config, self.fixed, f"{self.name} model", "Choose another family, or leave this setting.")
        for requirement in self.requirements:
            problem = requirement(config)
            if problem is not None:
                raise UserError(problem, where=f"family {self.name!r}")

    def canonical(self, name: str) -> str:
        """Return a tensor's full name: files of a model without its head lack the prefix.

        Files that were converted from TensorFlow call weight and bias of a LayerNorm "gamma" and "beta".
        """
        for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
            name = name.removesuffix(old) + new if name.endswith(old) else name
        is_full = name.startswith(self.base_prefix) or self.of_head.fullmatch(name)
        if is_full or (self.other_heads is not None and self.other_heads.fullmatch(name)):
            return name
        return self.base_prefix + name

    def architecture_of(self, config: ModelConfig) -> str:
        """Return the transformers class of a model."""
        return self.headless if self.headless and not config.mask_head else self.architecture


# transformers' names of activations to ours, and back: to the first that transformers has for each.
ACTIVATIONS = {theirs: ours for ours, entry in TABLE.items() for theirs in entry.transformers_names}
ACTIVATION_NAMES = {ours: entry.transformers_names[0] for ours, entry in TABLE.items()}
