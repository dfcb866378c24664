"""Bottleneck adapters: a narrow feed-forward part with a residual connection, after the parts of every block."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbllm.core.config import check_choice
from nbllm.models.block import Block
from nbllm.models.peft.adapted import Call, Part, draw_normal, empty, plain_class
from nbllm.models.peft.method import ADAPTERS, AdapterConfig, check_number, network_for
from nbllm.models.rwkv import RWKVBlock
from nbllm.nn.activations import ACTIVATIONS
from nbllm.nn.linear import linear

_STD = 1e-2  # of the first weights: Houlsby et al. 2019, section 3.6


class Bottleneck(Part):
    """Adds up(activation(down(h))) to h, what a module returns.

    Args:
        like: A tensor whose dtype and device its parameters have.
        width: Of h.
        size: Of the bottleneck.
        activation: A name in `nn.activations.ACTIVATIONS`.
    """

    def __init__(self, like: Tensor, *, width: int, size: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation].function
        self.down, self.down_bias = empty(size, width, like=like), empty(size, like=like)
        self.up, self.up_bias = empty(width, size, like=like), empty(width, like=like)

    @torch.no_grad()
    def initialize(self, draw: torch.Generator, module: nn.Module) -> None:
        """Draw `down` normally, and make all else zero, so that nothing is added."""
        draw_normal(self.down, _STD, draw)
        for parameter in (self.down_bias, self.up, self.up_bias):
            parameter.zero_()

    def forward(self, module: nn.Module, inner: Call, x: Tensor, *args: Any, **given: Any) -> Tensor:
        """Return what the module makes of x, transformed."""
        h: Tensor = inner(x, *args, **given)
        return h + self.added(h)

    def added(self, h: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """Return what is added for h."""
        narrow = self.activation(linear(h, self.down, self.down_bias))
        return linear(narrow, self.up, self.up_bias)


class BottleneckOfNormalized(Bottleneck):
    """The same on a feed-forward part whose sum with the stream is normalized ("post"): h is that sum, normalized.

    Args:
        block: The block, whose normalization is used twice.
        **settings: As `Bottleneck` takes them.
    """

    def __init__(self, block: Block, **settings: Any) -> None:
        super().__init__(**settings)
        self._block = (block,)  # in a tuple: it is no part of the adapter

    def forward(self, module: nn.Module, inner: Call, x: Tensor, *args: Any, **given: Any) -> Tensor:
        """Return what the module makes of x, with what is added for the stream after it."""
        (block,) = self._block
        assert block.feed_forward_norm is not None
        branch: Tensor = inner(x, *args, **given)
        h = block.feed_forward_norm(x * block.residual_scale + branch)
        return branch + self.added(h)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BottleneckAdapter(AdapterConfig):
    """What the kinds of bottleneck adapters have in common.

    Args:
        reduction_factor: How many times narrower than the model the bottleneck is.
        activation: A name in `nn.activations.ACTIVATIONS`.
    """

    relative_learning_rate: ClassVar[float] = 2.5

    reduction_factor: float | int = 16
    activation: str = "relu"

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_number(self.reduction_factor, "reduction_factor", self.label)
        check_choice(self, "activation", tuple(ACTIVATIONS))

    def settings_for(self, model: nn.Module) -> dict[str, Any]:
        """Return what `Bottleneck` takes, for a model."""
        width = network_for(model, self.label).config.hidden_size
        return {
            "like": model.get_parameter("embedding.weight"),
            "width": width,
            "size": max(1, int(width / self.reduction_factor)),
            "activation": self.activation,
        }

    def describe(self) -> str:
        """Return how narrow the bottlenecks are."""
        return f"{self.reduction_factor:g} times narrower, {ACTIVATIONS[self.activation].label}"


@ADAPTERS.register("houlsby")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Houlsby(BottleneckAdapter):
    """Bottleneck adapters after self-attention and after the feed-forward part, before each is added to the stream.

    Args:
        reduction_factor: How many times narrower than the model the bottleneck is.
        activation: A name in `nn.activations.ACTIVATIONS`.

    Source: Houlsby et al. 2019, arXiv:1902.00751, figure 2.
    """

    name: ClassVar[str] = "houlsby"
    label: ClassVar[str] = "Houlsby"

    activation: str = "silu"

    def parts(self, model: nn.Module) -> dict[str, Part]:
        """Return two bottlenecks for each block; of an RWKV they are after time and channel mixing."""
        settings = self.settings_for(model)
        out: dict[str, Part] = {}
        for name, module in model.named_modules():
            kind = plain_class(module)
            if kind in (Block, RWKVBlock):
                places = ("attention", "feed_forward") if kind is Block else ("time_mixing", "channel_mixing")
                out |= {f"{name}.{place}": Bottleneck(**settings) for place in places}
        return out


@ADAPTERS.register("pfeiffer")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pfeiffer(BottleneckAdapter):
    """One bottleneck adapter at the end of every block, which reads the stream after the feed-forward part.

    Where the stream is normalized after each part ("post"), it reads what is normalized, and what it adds is added to
    the feed-forward part, before the sum is normalized again.

    Args:
        reduction_factor: How many times narrower than the model the bottleneck is.
        activation: A name in `nn.activations.ACTIVATIONS`.

    Source: Pfeiffer et al. 2021, arXiv:2005.00247, section 3.1; AdapterHub's `SeqBnConfig`.
    """

    name: ClassVar[str] = "pfeiffer"
    label: ClassVar[str] = "Pfeiffer"

    def parts(self, model: nn.Module) -> dict[str, Part]:
        """Return a bottleneck for each block."""
        settings = self.settings_for(model)
        out: dict[str, Part] = {}
        for name, module in model.named_modules():
            kind = plain_class(module)
            if kind is Block and cast(Block, module).norm_placement == "post":
                out[f"{name}.feed_forward"] = BottleneckOfNormalized(cast(Block, module), **settings)
            elif kind in (Block, RWKVBlock):
                out[name] = Bottleneck(**settings)
        return out
