"""BitFit: only biases are trained."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from nbllm.core.errors import UserError
from nbllm.models.peft.adapted import Call, Part, empty, plain_class
from nbllm.models.peft.method import ADAPTERS, AdapterConfig, is_named
from nbllm.nn.linear import Linear
from nbllm.nn.nf4_linear import NF4Linear
from nbllm.nn.normalization import LayerNorm


class BiasShift(Part):
    """What is added to a module's bias.

    The bias itself stays: bias + shift has the gradient and the values that a trained bias would have, but for weight
    decay, which pulls it toward the pretrained bias and not toward 0.

    Args:
        bias: The bias.
    """

    can_merge = True
    adds = True

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.shift = empty(*bias.shape, like=bias)

    @torch.no_grad()
    def initialize(self, draw: torch.Generator, module: nn.Module) -> None:
        """Make it 0: nothing is drawn."""
        self.shift.zero_()

    def forward(self, module: nn.Module, inner: Call, x: Tensor) -> Tensor:
        """Return what the module makes of x, shifted."""
        out: Tensor = inner(x) + self.shift
        return out

    def merged(self, weight: Tensor, bias: Tensor | None, base: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the same weight, and the bias with the shift added."""
        assert bias is not None
        return weight, bias + self.shift.float()


@ADAPTERS.register("bitfit")
@dataclasses.dataclass(frozen=True, kw_only=True)
class BitFit(AdapterConfig):
    """Only the biases of linear layers and normalizations are trained.

    Args:
        targets: Modules whose biases are: names, ends or patterns such as "query" or "blocks.*.attention.*"; (): all.

    Source: Ben Zaken et al. 2022, arXiv:2106.10199.
    """

    name: ClassVar[str] = "bitfit"
    label: ClassVar[str] = "BitFit"
    relative_learning_rate: ClassVar[float] = 5.0

    targets: tuple[str, ...] | list[str] | str = ()

    def __post_init__(self) -> None:
        """A single name is a tuple of one."""
        targets = (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)
        object.__setattr__(self, "targets", targets)

    def parts(self, model: nn.Module) -> dict[str, Part]:
        """Return a shift for each bias."""
        biased = {
            name: cast(Any, module).bias
            for name, module in model.named_modules()
            if plain_class(module) in (Linear, NF4Linear, LayerNorm) and cast(Any, module).bias is not None
        }
        if not biased:
            raise UserError(
                "The model has no biases to train.", where=self.label, hint="Use nb.LoRA(rank=8)."
            )
        for target in self.targets:
            if not any(is_named(name, target) for name in biased):
                raise UserError(f"The model has no bias at {target!r}.", where=self.label)
        return {
            name: BiasShift(bias)
            for name, bias in biased.items()
            if not self.targets or any(is_named(name, target) for target in self.targets)
        }

    def describe(self) -> str:
        """Return which biases are trained."""
        return f"biases of {', '.join(self.targets)}" if self.targets else "all biases"
