"""Which share of each parameter a rank of tensor parallelism has, and what its gradient is."""

from __future__ import annotations

import dataclasses
from typing import cast

from torch import Tensor, nn

from nbllm.core.errors import UserError
from nbllm.models.block import Block
from nbllm.models.config import ModelConfig
from nbllm.models.network import Network
from nbllm.models.peft.adapted import Adapted
from nbllm.models.peft.lora import LowRank
from nbllm.nn.attention import Attention
from nbllm.nn.cross_attention import CrossAttention
from nbllm.nn.feed_forward import FeedForward
from nbllm.nn.linear import Linear
from nbllm.nn.mixture_of_experts import MixtureOfExperts
from nbllm.nn.nf4_linear import NF4Linear
from nbllm.nn.positions.relative_buckets import RelativeBuckets
from nbllm.nn.positions.transformer_xl import TransformerXLPositions


@dataclasses.dataclass(frozen=True)
class Share:
    """How the ranks share one parameter.

    Attributes:
        dim: The dimension in which it is split, as `torch.chunk` does; None: every rank has the whole of it.
        groups: Of a parameter that every rank has: into how many groups of rows, one for each key/value head, it
            falls, of which a rank computes with one; 0: with all rows.
        partial: Whether each rank computes only a part of the gradient, and the parts are to be summed.
        once: Whether it is added to a sum over ranks, so that the first rank alone adds it.
        vocabulary: Whether its rows are those of tokens.
    """

    dim: int | None = None
    groups: int = 0
    partial: bool = False
    once: bool = False
    vocabulary: bool = False

    def rows(self, length: int, rank: int, size: int) -> slice:
        """Return the rows that a rank computes with, of a parameter of `groups`."""
        each = length // self.groups
        first = rank * self.groups // size * each
        return slice(first, first + each)


WHOLE = Share()


def shares(network: Network, size: int, *, sequence: bool = False) -> dict[str, Share]:
    """Return the share of each parameter, by its name.

    Query, key, value, gate and up are split by rows, as their outputs are, and the matrices that read these, output
    and down, by columns; embedding and head by rows, one for each token. All others every rank has.

    Args:
        network: The network; its weights are not read, so that it may be on the device "meta".
        size: How many ranks there are.
        sequence: Whether normalizations in the blocks see a part of each sequence on each rank.

    Raises:
        UserError: As `check_tensor_parallel`, or the network has adapters or layers that cannot be split.
    """
    check_tensor_parallel(network.config, size)
    made: dict[str, Share] = {name: WHOLE for name, _ in network.named_parameters()}
    for path, module in network.named_modules():
        if isinstance(module, (Attention, CrossAttention)):
            made |= _of_attention(module, path, network.config, size)
        elif isinstance(module, FeedForward):
            made |= _of_feed_forward(module, path)
        elif isinstance(module, MixtureOfExperts):
            # What each rank's parts of the experts give is weighted by the router, whose gradient is therefore a part.
            made |= _of_linear(module.router, f"{path}.router", Share(partial=True))
        elif isinstance(module, RelativeBuckets):
            made[f"{path}.weight"] = Share(dim=1)
        elif isinstance(module, TransformerXLPositions):
            made |= {f"{path}.{name}": Share(dim=0) for name, _ in module.named_parameters()}
        elif isinstance(module, Block) and sequence:
            norms = [name for name, _ in module.named_parameters() if name.split(".")[0].endswith("_norm")]
            made |= {f"{path}.{name}": Share(partial=True) for name in norms}
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for module, name in network.vocabulary_parameters:
        made[names[id(getattr(module, name))]] = Share(dim=0, vocabulary=True)
    _check_adapters(network)
    return made


def check_tensor_parallel(config: ModelConfig, size: int) -> None:
    """Refuse a model whose parts cannot be split over so many ranks.

    Raises:
        UserError: With the reason and what to do.
    """
    where = f"Plan(tensor={size})"
    if size == 1:
        return
    if config.network == "rwkv":
        raise UserError(
            "Tensor parallelism splits attention heads, and a recurrent network has none.",
            where=where,
            hint="Use data parallelism with zero=3 instead.",
        )
    heads, kv_heads = config.num_heads, config.num_kv_heads
    if heads % size:
        raise UserError(
            f"The model's {heads} attention heads cannot be split evenly over {size} ranks.",
            where=where,
            hint=f"Use tensor={_nearest(heads, size)}.",
        )
    if kv_heads % size and size % kv_heads:
        raise UserError(
            f"The model's {kv_heads} key/value heads can neither be split evenly over {size} ranks nor be shared by "
            "equally many.",
            where=where,
            hint=f"Use tensor={_nearest(kv_heads, size)}.",
        )
    for name in ("intermediate_size", "vocab_size"):
        length = getattr(config, name)
        if -(-length // size) * (size - 1) >= length:
            raise UserError(
                f"{name} is {length}, too few for {size} ranks.", where=where, hint="Use a smaller tensor=."
            )


def _nearest(heads: int, size: int) -> int:
    """Return the greatest number of ranks, not more than `size`, that splits so many heads evenly."""
    return max(number for number in range(1, size + 1) if heads % number == 0)


def _of_attention(
    module: Attention | CrossAttention, path: str, config: ModelConfig, size: int
) -> dict[str, Share]:
    made = _of_column(module.query, f"{path}.query")
    groups = config.num_kv_heads if config.num_kv_heads % size else 0  # fewer key/value heads than ranks
    for name in ("key", "value"):
        made |= _of_column(getattr(module, name), f"{path}.{name}", groups)
    made |= _of_row(module.output, f"{path}.output")
    for name in ("query_norm", "key_norm"):
        norm: nn.Module | None = getattr(module, name, None)
        if norm is not None:  # the same weights for every head: each rank has the gradient of its own heads
            made |= {f"{path}.{name}.{each}": Share(partial=True) for each, _ in norm.named_parameters()}
    return made


def _of_feed_forward(module: FeedForward, path: str) -> dict[str, Share]:
    gate = {} if module.gate is None else _of_column(module.gate, f"{path}.gate")
    return gate | _of_column(module.up, f"{path}.up") | _of_row(module.down, f"{path}.down")


def _of_column(layer: nn.Module, path: str, groups: int = 0) -> dict[str, Share]:
    """Return the shares of a layer whose outputs are split, or of which each rank computes one group's."""
    share = Share(groups=groups, partial=True) if groups else Share(dim=0)
    made = _of_linear(layer, path, share)
    for name, _ in _updates(layer):
        made |= {
            f"{path}.adapters.{name}.lora_a": Share(partial=True),
            f"{path}.adapters.{name}.lora_b": share,
        }
    return made


def _of_row(layer: nn.Module, path: str) -> dict[str, Share]:
    """Return the shares of a layer that reads a split input, and whose outputs are to be summed."""
    made = _of_linear(layer, path, Share(dim=1))
    if f"{path}.bias" in made:
        made[f"{path}.bias"] = Share(once=True)
    for name, _ in _updates(layer):
        made |= {
            f"{path}.adapters.{name}.lora_a": Share(dim=1), f"{path}.adapters.{name}.lora_b": Share(partial=True),
        }  # fmt: skip
    return made


def _of_linear(layer: nn.Module, path: str, share: Share) -> dict[str, Share]:
    if isinstance(layer, NF4Linear):
        raise UserError(
            "Weights in 4 bits cannot be split over ranks.", where=path, hint="Use tensor=1, or plain LoRA."
        )
    assert isinstance(layer, Linear), type(layer)
    return {f"{path}.{name}": share for name, _ in layer.named_parameters(recurse=False)}


def _updates(layer: nn.Module) -> list[tuple[str, LowRank]]:
    """Return the updates of low rank of a layer, by the name of the adapter."""
    found = cast("dict[str, nn.Module]", getattr(layer, "adapters", {}))
    return [(name, part) for name, part in found.items() if isinstance(part, LowRank)]


def _check_adapters(network: Network) -> None:
    """Refuse the adapters whose parts cannot be split: all but LoRA on the layers of the blocks."""
    for path, module in network.named_modules():
        if not isinstance(module, Adapted):
            continue
        for name, part in module.adapters.items():
            plain = type(part) is LowRank and part.magnitude is None
            if not plain or not isinstance(module, Linear):
                raise UserError(
                    f"The adapter {name!r} cannot be split over ranks of tensor parallelism.",
                    where=path or "the network",
                    hint="Use LoRA without DoRA on layers of the blocks, or tensor=1.",
                )


def local_shape(parameter: Tensor, share: Share, rank: int, size: int) -> tuple[int, ...]:
    """Return the shape of what a rank holds of a parameter."""
    shape = list(parameter.shape)
    if share.dim is not None:
        each = -(-shape[share.dim] // size)
        shape[share.dim] = max(min(each, shape[share.dim] - rank * each), 0)
    return tuple(shape)
