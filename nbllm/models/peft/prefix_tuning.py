"""Prefix tuning and P-tuning v2: trained keys and values stand before every text in every layer."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nbllm.core.errors import UserError
from nbllm.models.network import Network
from nbllm.models.peft.adapted import Part, draw_normal, draw_uniform, empty, plain_class
from nbllm.models.peft.adapted_network import NetworkPart
from nbllm.models.peft.method import ADAPTERS, AdapterConfig, check_count, check_positions, network_for
from nbllm.nn.key_prefix import KeyPrefix


class KeysAndValues(NetworkPart):
    """Keys and values before a text, trained as they are or made of narrower vectors.

    Args:
        network: The network.
        settings: How many, and how they are made.

    Attributes:
        embedding: (token, layer * 2 * kv_head * head_dim) or, where they are made, (token, hidden).
    """

    def __init__(self, network: Network, settings: PrefixTuning) -> None:
        super().__init__()
        config, like = network.config, network.get_parameter("embedding.weight")
        layers = config.num_decoder_layers or config.num_layers
        self._shape = (layers, 2, config.num_kv_heads, config.head_dim)
        self._places: list[int] | None = None  # of each layer's; None: in order
        if settings.peft_order and config.network == "encoder_decoder":
            self._places = [2 * layer % layers for layer in range(layers)]
        self.num_prefix_tokens = settings.num_virtual_tokens
        size, width = math.prod(self._shape), config.num_kv_heads * config.head_dim
        self.embedding = empty(
            self.num_prefix_tokens, width if settings.prefix_projection else size, like=like
        )
        self.transform: nn.Sequential | None = None
        if settings.prefix_projection:
            hidden = settings.encoder_hidden_size or config.hidden_size
            with torch.device("meta"):  # where nothing is drawn
                self.transform = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, size))
            if like.device.type != "meta":
                self.transform.to_empty(device=like.device).to(like.dtype)

    @torch.no_grad()
    def initialize(self, draw: torch.Generator, module: nn.Module) -> None:
        """Begin with the keys and values of tokens drawn at random (Li and Liang 2021, section 7.4).

        Where they are made of vectors, draw these normally, and what makes them uniformly, as torch draws its layers.
        """
        if self.transform is None:
            network = cast(Network, module)
            ids = torch.randint(network.config.vocab_size, (1, self.num_prefix_tokens), generator=draw)
            held = keys_and_values(network, ids.to(network.device))
            if self._places is None:
                self.embedding.copy_(held.permute(3, 0, 1, 2, 4).flatten(1))
                return
        draw_normal(self.embedding, 1.0, draw)
        for layer in self.transform or ():
            if isinstance(layer, nn.Linear):
                for parameter in (layer.weight, layer.bias):
                    draw_uniform(parameter, 1 / math.sqrt(layer.in_features), draw)

    def flat(self) -> Float[Tensor, "token _"]:
        """Return keys and values of every layer, one row a token."""
        out: Tensor = self.embedding if self.transform is None else self.transform(self.embedding)
        return out

    def prefix(self) -> Float[Tensor, "layer 2 kv_head token head_dim"]:
        """Return keys and values."""
        out: Tensor = self.flat().unflatten(1, self._shape).permute(1, 2, 3, 0, 4)
        return out if self._places is None else out[self._places]


class _Recorder(KeyPrefix):
    """Takes what a network computes as keys and values of a text."""

    def __init__(self, network: Network) -> None:
        config = network.config
        super().__init__(torch.zeros(1, 2, config.num_kv_heads, 0, config.head_dim), 1)
        self.held: list[Tensor] = []

    def update(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Take one layer's."""
        self.held.append(torch.cat((key, value)))
        return key, value


@torch.no_grad()
def keys_and_values(
    network: Network, ids: Int[Tensor, "1 token"]
) -> Float[Tensor, "layer 2 kv_head token head_dim"]:
    """Return the keys and values of a text in every layer; of an encoder-decoder, of the text that is written."""
    recorder = _Recorder(network)
    given = (ids, ids) if network.config.network == "encoder_decoder" else (ids,)
    kind: Any = plain_class(network)  # without the virtual tokens of other adapters
    kind.hidden(network, *given, cache=recorder)
    return torch.stack(recorder.held)


@ADAPTERS.register("prefix_tuning")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixTuning(AdapterConfig):
    """Keys and values that stand before every text in every layer are trained.

    With an encoder-decoder they stand before what the decoder writes. They are not rotated where positions rotate keys.

    Args:
        num_virtual_tokens: How many; they take as many positions.
        prefix_projection: Whether they are made of narrower vectors by two layers with tanh, which trains more stably
            (the reparametrization of the paper). Files hold what they make, so that this is for training alone.
        encoder_hidden_size: Width between the two layers; None: that of the model.
        peft_order: Of an encoder-decoder: whether the keys and values of layer i are those at place 2 i, counted in a
            circle, of all; so peft has them, of whose parameters half are then not used where layers are even. Only
            such a prefix can be saved in peft's files.

    Source: Li and Liang 2021, arXiv:2101.00190, section 4.3; Liu et al. 2021, arXiv:2110.07602 (P-tuning v2).
    """

    name: ClassVar[str] = "prefix_tuning"
    label: ClassVar[str] = "Prefix-tuning"
    relative_learning_rate: ClassVar[float] = 5.0

    num_virtual_tokens: int = 20
    prefix_projection: bool = True
    encoder_hidden_size: int | None = None
    peft_order: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_count(self.num_virtual_tokens, "num_virtual_tokens", self.label)
        if self.encoder_hidden_size is not None:
            check_count(self.encoder_hidden_size, "encoder_hidden_size", self.label)

    def parts(self, model: nn.Module) -> dict[str, Part]:
        """Return keys and values, which belong to the network.

        Raises:
            UserError: The network has no attention, or layers that share their parameters, or reads texts anew.
        """
        network = network_for(model, self.label)
        config, hint = network.config, "Use nb.PromptTuning()."
        if config.network == "rwkv":
            raise UserError("An RWKV has no keys that a text could see.", where=self.label, hint=hint)
        if config.num_layer_groups and config.num_layer_groups != config.num_layers:
            raise UserError(
                "Layers that share parameters would share the prefix.", where=self.label, hint=hint
            )
        if config.rope_scaling is not None and config.rope_scaling.kind == "dynamic":
            raise UserError(
                "Dynamic scaling of positions reads a text anew, and would lose the prefix.",
                where=self.label,
                hint=hint,
            )
        check_positions(network, self.num_virtual_tokens, self.label)
        return {"": KeysAndValues(network, self)}

    @property
    def num_positions(self) -> int:
        """How many positions its virtual tokens take."""
        return self.num_virtual_tokens

    def describe(self) -> str:
        """Return how many tokens there are, and how they are made."""
        made = ", reparametrized" if self.prefix_projection else ""
        return f"{self.num_virtual_tokens} virtual tokens in every layer{made}"


@ADAPTERS.register("p_tuning_v2")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PTuningV2(PrefixTuning):
    """Deep prompt tuning: `PrefixTuning` on any network, encoders too, trained as it is unless asked otherwise.

    Args:
        num_virtual_tokens: As for `PrefixTuning`.
        prefix_projection: As for `PrefixTuning`.
        encoder_hidden_size: As for `PrefixTuning`.
        peft_order: As for `PrefixTuning`.

    Source: Liu et al. 2021, arXiv:2110.07602, section 3.
    """

    name: ClassVar[str] = "p_tuning_v2"
    label: ClassVar[str] = "P-tuning v2"
    relative_learning_rate: ClassVar[float] = 25.0

    prefix_projection: bool = False
