"""(IA)^3: vectors that scale keys, values and the inner activations of the feed-forward parts."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbllm.core.errors import UserError
from nbllm.models.peft.adapted import Call, Part, empty
from nbllm.models.peft.method import ADAPTERS, AdapterConfig, checked_targets, is_named, linear_layers


class Scaling(Part):
    """A vector that multiplies what a linear layer returns, or what it reads.

    Args:
        weight: The layer's, (output, input).
        of_input: Whether it multiplies the input.
    """

    can_merge = True

    def __init__(self, weight: Tensor, *, of_input: bool) -> None:
        super().__init__()
        self.of_input = of_input
        self.factor = empty(weight.shape[1 if of_input else 0], like=weight)
        nn.init.ones_(self.factor)

    @torch.no_grad()
    def initialize(self, draw: torch.Generator, module: nn.Module) -> None:
        """Make every factor 1: nothing is drawn."""
        self.factor.fill_(1.0)

    def forward(
        self, module: nn.Module, inner: Call, x: Float[Tensor, "... input"]
    ) -> Float[Tensor, "... output"]:
        """Return what the layer makes of x, scaled."""
        out: Tensor = inner(x * self.factor) if self.of_input else inner(x) * self.factor
        return out

    def merged(self, weight: Tensor, bias: Tensor | None, base: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the weight with its columns scaled, or with its rows and the bias scaled."""
        factor = self.factor.float()
        if self.of_input:
            return weight * factor, bias
        return weight * factor[:, None], None if bias is None else bias * factor


@ADAPTERS.register("ia3")
@dataclasses.dataclass(frozen=True, kw_only=True)
class IA3(AdapterConfig):
    """Infused adapter by inhibiting and amplifying inner activations: learned vectors scale activations.

    Args:
        targets: Linear layers, named as for `LoRA`.
        feed_forward: Which of the targets have their input scaled and not their output.

    Raises:
        UserError: Targets are no names.

    Source: Liu et al. 2022, arXiv:2205.05638, section 3.3.
    """

    name: ClassVar[str] = "ia3"
    label: ClassVar[str] = "(IA)3"
    relative_learning_rate: ClassVar[float] = 15.0

    targets: tuple[str, ...] | list[str] | str = ("key", "value", "down")
    feed_forward: tuple[str, ...] | list[str] | str = ("down",)

    def __post_init__(self) -> None:
        """Check the names."""
        object.__setattr__(self, "targets", checked_targets(self.targets, self.label))
        of_input = self.feed_forward
        object.__setattr__(self, "feed_forward", checked_targets(of_input, self.label) if of_input else ())

    def parts(self, model: nn.Module) -> dict[str, Part]:
        """Return a vector for each layer."""
        names = linear_layers(model, self.targets, self.label)
        of_input = {name for name in names if any(is_named(name, each) for each in self.feed_forward)}
        for each in self.feed_forward:
            if not any(is_named(name, each) for name in names):
                raise UserError(f"feed_forward has {each!r}, which is no target.", where=self.label)
        return {
            name: Scaling(cast(nn.Linear, model.get_submodule(name)).weight, of_input=name in of_input)
            for name in names
        }

    def describe(self) -> str:
        """Return which layers are scaled."""
        return ", ".join(cast(Any, self.targets))
