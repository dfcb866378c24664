"""What a method of parameter-efficient tuning is: settings, and the parts that it adds to a network's modules."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Iterable
from typing import Any, ClassVar

from torch import nn

from nbllm.core.config import PlainConfig
from nbllm.core.errors import UserError, listed
from nbllm.core.registry import Registry
from nbllm.models.network import Network
from nbllm.models.peft.adapted import Part, plain_class
from nbllm.nn.linear import Linear
from nbllm.nn.nf4_linear import NF4Linear

ALL_LINEAR = "all-linear"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig(PlainConfig):
    """The settings of an adapter; a subclass is one file that registers itself in `ADAPTERS`.

    Attributes:
        name: In `ADAPTERS`.
        label: Its name for people.
        relative_learning_rate: How many times LoRA's its learning rate is, unless one is given.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    relative_learning_rate: ClassVar[float] = 1.0

    def parts(self, model: nn.Module) -> dict[str, Part]:
        """Return new parts by the module of the model that each belongs to; "": the network itself.

        Raises:
            UserError: The method makes no sense for the model, or a target names no module of it.
        """
        raise NotImplementedError

    @property
    def num_positions(self) -> int:
        """How many positions its virtual tokens take."""
        return 0

    def describe(self) -> str:
        """Return the settings that matter, in words."""
        raise NotImplementedError


ADAPTERS: Registry[type[AdapterConfig]] = Registry("method of parameter-efficient tuning")


def linear_layers(model: nn.Module, targets: Iterable[str], where: str) -> list[str]:
    """Return the names of the linear layers that targets name.

    Args:
        model: The model.
        targets: Names, ends of names or patterns such as "blocks.0.*"; "all-linear": every layer of the blocks.
        where: Who asks, for errors.

    Raises:
        UserError: A target names none.
    """
    names = [name for name, module in model.named_modules() if plain_class(module) in (Linear, NF4Linear)]
    found: set[str] = set()
    for target in targets:
        fits = {
            name for name in names if (target == ALL_LINEAR and "blocks." in name) or is_named(name, target)
        }
        if not fits:
            known = sorted({name.rpartition(".")[2] for name in names})
            raise UserError(
                f"The model has no linear layer {target!r}.",
                where=where,
                hint=f"It has: {listed(known, quote=False)}.",
            )
        found |= fits
    return [name for name in names if name in found]


def is_named(name: str, target: str) -> bool:
    """Return whether a target is a module's name, the end of it, or a pattern that it matches."""
    return name == target or name.endswith(f".{target}") or fnmatch.fnmatchcase(name, target)


def checked_targets(targets: Any, where: str) -> tuple[str, ...]:
    """Return the names of layers as a tuple.

    Raises:
        UserError: They are none.
    """
    many = (targets,) if isinstance(targets, str) else targets
    if not many or not isinstance(many, (list, tuple)) or not all(isinstance(each, str) for each in many):
        raise UserError(f"targets must be names of layers, not {targets!r}.", where=where)
    return tuple(many)


def check_number(value: Any, name: str, where: str) -> None:
    """Raise `UserError` unless a value is a finite number above 0."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise UserError(f"{name} must be a finite number above 0, not {value!r}.", where=where)


def check_count(value: Any, name: str, where: str) -> None:
    """Raise `UserError` unless a value is a whole number above 0."""
    if type(value) is not int or value < 1:
        raise UserError(f"{name} must be a whole number above 0, not {value!r}.", where=where)


def network_for(model: nn.Module, where: str) -> Network:
    """Return a model as the network that a method needs it to be.

    Raises:
        UserError: It is another module.
    """
    if not isinstance(model, Network):
        raise UserError(f"It needs one of our networks, not {type(model).__name__}.", where=where)
    return model


def check_positions(network: Network, num_tokens: int, where: str) -> None:
    """Raise `UserError` where so many virtual tokens leave a model no positions for a text."""
    if num_tokens >= network.context_length:
        raise UserError(
            f"{num_tokens} virtual tokens leave nothing of the {network.context_length} positions.",
            where=where,
        )
