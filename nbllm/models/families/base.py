"""What a family is: a map of configurations and a map of weight names."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from nbllm.core.errors import UserError
from nbllm.models.config import ModelConfig, check_fixed
from nbllm.models.families.config_reader import ConfigReader
from nbllm.nn.activations import ACTIVATIONS as TABLE

HEAD = "lm_head.weight"
SCORING = "ForSequenceClassification"  # the end of the names of classes with a score head
_LANGUAGE_MODEL = re.compile("(ForCausalLM|ForMaskedLM|LMHeadModel)$")

# Settings that a family has with just this value, unless it says that it varies them.
USUAL: dict[str, Any] = {
    "position_offset": 0, "parallel_block": False, "shared_norm": False, "qk_norm": False, "sliding_window": 0,
    "head_bias": False, "num_decoder_layers": 0, "attention_scale": 0.0, "scale_embedding": False, "scale_head": False,
    "rotary_fraction": 1.0, "rotary_interleaved": False, "embedding_norm": False, "rope_scaling": None,
    "rescale_every": 0, "residual_scale": 1.0,
    "norm_placement": "pre", "attention_softcap": 0.0, "logit_softcap": 0.0, "full_attention_interval": 0,
    "rope_local_theta": 0.0, "embedding_size": 0, "num_experts": 0, "experts_per_token": 0, "router_loss_weight": 0.0,
    "score_head": False,
}  # fmt: skip


@runtime_checkable
class Tensors(Protocol):
    """The tensors of a model's files."""

    def __contains__(self, name: str) -> bool:
        """Return whether there is a tensor of this full name."""

    def is_zero(self, name: str) -> bool:
        """Return whether all elements of a tensor are zero."""


def holds(tensor: str) -> Callable[[ModelConfig, Tensors], bool]:
    """Return the function that says whether the weights hold a tensor, for `Family.optional`."""
    return lambda config, tensors: tensor in tensors


@dataclasses.dataclass(frozen=True)
class WeightRule:
    """Which parameters of ours one of a family's tensors holds.

    Attributes:
        source: The family's tensor.
        targets: Our parameters; where there are several, its rows are theirs, in order.
        transposed: Whether the family stores (in, out) where we have (out, in).
        is_row: Whether the family stores a vector as a matrix of one row.
        heads: How many equal groups the rows come in, each with a part of every target's rows in order, as a fused
            projection has them that is laid out head by head (BLOOM, GPT-NeoX).
    """

    source: str
    targets: tuple[str, ...]
    transposed: bool = False
    is_row: bool = False
    heads: int = 1

    def shape(self, rows: int, others: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the family's tensor for so many rows in all and the parameters' other dimensions."""
        shape = (rows, *others)
        return shape[::-1] if self.transposed else (1, *shape) if self.is_row else shape

    def split(self, tensor: Tensor, rows: Sequence[int]) -> tuple[Tensor, ...]:
        """Return the parameters that the family's tensor holds, slices of one storage.

        Args:
            tensor: The family's.
            rows: Rows of each target.
        """
        whole = tensor.t() if self.transposed else tensor[0] if self.is_row else tensor
        if self.heads > 1:
            groups = whole.unflatten(0, (self.heads, -1)).split(
                [count // self.heads for count in rows], dim=1
            )
            whole = torch.cat([group.flatten(0, 1) for group in groups])
        parts: tuple[Tensor, ...] = whole.contiguous().split(list(rows))
        return parts

    def join(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return the family's tensor that holds these parameters."""
        whole = parameters[0] if len(parameters) == 1 else torch.cat(list(parameters))
        if self.heads > 1:
            groups = [parameter.unflatten(0, (self.heads, -1)) for parameter in parameters]
            whole = torch.cat(groups, dim=1).flatten(0, 1)
        return (whole.t() if self.transposed else whole[None] if self.is_row else whole).contiguous()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """A Hugging Face family.

    Attributes:
        name: Its `model_type`.
        label: Its name for people, as its authors write it.
        architecture: The transformers class of its language model.
        headless: The class without the language model's head, where a model may lack that.
        base_prefix: What the class puts before the names of all weights but the head's.
        head: The head's matrix.
        of_head: A pattern of the names of the head's weights.
        optional: Settings of `ModelConfig` that a configuration file does not state, each with the function that
            reads it off the weights.
        unless_zero: A tensor that is left out where it is zero.
        decoder_start: Which of the tokenizer's tokens an encoder-decoder's text begins with where its files do not say.
        other_heads: A pattern of tensors of heads for other tasks, which are left out with a warning.
        fixed: Settings of `ModelConfig` that this family cannot vary.
        varied: Those of `USUAL` that it can vary.
        read: Reads a configuration; must leave no setting that matters unread.
        write: The family's configuration file for a model.
        rules: The weight map for a configuration.
        scoring: By our module, the class for sequence classification's, of a head that scores a text (`score`) and of
            what is called otherwise there; none: the family has no such class.
        unused: A pattern of tensors that old files carry and nothing reads: masks, frequencies.
        requirements: Further conditions: each returns what is wrong, or None.
    """

    name: str
    label: str
    architecture: str
    headless: str = ""
    base_prefix: str
    head: str = HEAD
    of_head: re.Pattern[str] = re.compile(re.escape(HEAD))
    optional: Mapping[str, Callable[[ModelConfig, Tensors], bool]] = dataclasses.field(default_factory=dict)
    unless_zero: str = ""
    decoder_start: str = "pad_token_id"
    other_heads: re.Pattern[str] | None = None
    fixed: Mapping[str, Any]
    varied: frozenset[str] = frozenset()
    read: Callable[[ConfigReader], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    rules: Callable[[ModelConfig], list[WeightRule]]
    scoring: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"score": "score"})
    unused: re.Pattern[str]
    requirements: tuple[Callable[[ModelConfig], str | None], ...] = ()

    def __post_init__(self) -> None:
        """Let the weight map serve models with a score head too."""
        if self.scoring:
            object.__setattr__(self, "rules", functools.partial(_with_scores, self.rules, self.scoring))
            object.__setattr__(self, "varied", self.varied | {"score_head"})

    def check(self, config: ModelConfig) -> None:
        """Raise `UserError` unless the family can express `config`."""
        usual = {name: value for name, value in USUAL.items() if name not in self.varied}
        check_fixed(
            config,
            {**usual, **self.fixed},
            f"{self.name} model",
            "Choose another family, or leave this setting.",
        )
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
        is_scoring = name.rpartition(".")[0] in self.scoring.values()
        if is_full or is_scoring or (self.other_heads is not None and self.other_heads.fullmatch(name)):
            return name
        return self.base_prefix + name

    def architecture_of(self, config: ModelConfig) -> str:
        """Return the transformers class of a model."""
        if config.score_head:
            return _LANGUAGE_MODEL.sub(SCORING, self.architecture)
        return self.headless if self.headless and not config.mask_head else self.architecture


def _with_scores(
    rules: Callable[[ModelConfig], list[WeightRule]], scoring: Mapping[str, str], config: ModelConfig
) -> list[WeightRule]:
    """Return the weight map of a model, whose score head, if it has one, takes the place of all other heads."""
    if not config.score_head:
        return rules(config)
    body = [
        rule
        for rule in rules(config)
        if not any(target.split(".")[0] in ("head", *scoring) for target in rule.targets)
    ]
    kinds = ("weight", "bias") if config.network == "encoder" else ("weight",)
    return body + [
        WeightRule(f"{theirs}.{kind}", (f"{ours}.{kind}",))
        for ours, theirs in scoring.items()
        for kind in kinds
    ]


# transformers' names of activations to ours, and back: to the first that transformers has for each.
ACTIVATIONS = {theirs: ours for ours, entry in TABLE.items() for theirs in entry.transformers_names}
ACTIVATION_NAMES = {ours: entry.transformers_names[0] for ours, entry in TABLE.items()}
