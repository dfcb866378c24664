"""Context parallelism: each rank has a part of every sequence, and in attention some of the heads for all of it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from nbllm.core.errors import UserError
from nbllm.distributed.loss_module import LossModule, LossOutput
from nbllm.distributed.plan import Plan, RunFacts
from nbllm.distributed.staged_network import StageEnd
from nbllm.distributed.tensor_regions import Region
from nbllm.models.block import Block
from nbllm.models.config import ModelConfig
from nbllm.models.network import Network
from nbllm.nn.attention import Attention, AttentionContext
from nbllm.nn.cross_attention import CrossAttention
from nbllm.nn.masks import Mask
from nbllm.nn.mixture_of_experts import MixtureOfExperts, current_routing
from nbllm.nn.positions import Places
from nbllm.nn.shared_rows import RowShare, current_share, share_rows

Heads: TypeAlias = Float[Tensor, "batch head position head_dim"]
Projected: TypeAlias = tuple[Heads, Heads, Heads]


def check(plan: Plan, model: ModelConfig, run: RunFacts) -> None:
    """Check that the sequences of a model can be split over a plan's context ranks."""
    if plan.context == 1:
        return
    check_context_parallel(model, plan.context, tensor=plan.tensor)
    if plan.sequence:
        raise UserError(
            "sequence=True and context share out the same positions.",
            where="Plan",
            hint="Leave sequence out: with context, the ranks hold parts of sequences anyway.",
        )


def check_context_parallel(config: ModelConfig, size: int, *, tensor: int = 1) -> None:
    """Refuse a model whose heads cannot be split over so many ranks.

    Args:
        config: The model's shape.
        size: Ranks that share a sequence.
        tensor: Ranks that share the heads besides.

    Raises:
        UserError: With the reason and what to do.
    """
    where = f"Plan(context={size})"
    if config.network == "rwkv":
        raise UserError(
            "A recurrent network reads its tokens one after the other; their positions cannot be shared out.",
            where=where,
            hint="Use data parallelism instead.",
        )
    if config.positions == "transformer_xl":
        raise UserError(
            "Transformer-XL's positions are computed from the queries of all heads.",
            where=where,
            hint="Use data parallelism instead, or another kind of positions.",
        )
    heads = config.num_heads // tensor
    if heads % size:
        each = "" if tensor == 1 else f" of each of {tensor} tensor ranks"
        best = max(number for number in range(1, size + 1) if heads % number == 0)
        raise UserError(
            f"The model's {heads} attention heads{each} cannot be split evenly over {size} ranks.",
            where=where,
            hint=f"Use context={best}.",
        )


def apply_context_parallel(network: Network, mesh: DeviceMesh, *, tensor: int = 1) -> None:
    """Let each rank compute with a part of the positions of every sequence, in place.

    Before the first block of a stack each rank takes its part of the residual stream, and after the last
    normalization all parts are joined. In attention, an all-to-all gives each rank all positions of some heads, and a
    second one gives the results back; so masks, positions and attention backends are those of whole sequences. A
    sequence of any length is split; the last ranks may have fewer tokens, which are padded. Key/value heads that are
    fewer than the ranks, or do not divide by them, are repeated.

    This is done within the loss alone (`share_loss`); to generate or to look inside, the network computes as one
    process does. Every rank has the same parameters, and a summand of their gradients.

    Args:
        network: The network, perhaps this rank's share of one that tensor parallelism has split.
        mesh: The ranks, in one dimension.
        tensor: How many ranks share the heads besides, by tensor parallelism.

    Raises:
        UserError: As `check_context_parallel`, or there is an adapter that puts keys before a text.

    Source: Jacobs et al. 2023 (DeepSpeed-Ulysses), arXiv:2309.14509, section 3.
    """
    check_context_parallel(network.config, mesh.size(), tensor=tensor)
    if getattr(network, "num_prefix_tokens", 0):
        raise UserError(
            "An adapter's prefix stands before the text in every layer, and is not split with it.",
            where=f"Plan(context={mesh.size()})",
            hint="Use another adapter, such as LoRA.",
        )
    if mesh.size() == 1:
        return
    for module in list(network.modules()):
        if hasattr(module, "finish_stream"):
            _share_stack(module, _Sequences(mesh))


def share_loss(module: LossModule, mesh: DeviceMesh) -> None:
    """Let the loss of a network be computed by context ranks together, in place.

    All ranks have the same batch. Each returns its share of the loss and of what counts in it: they add up to what one
    process returns, and so do the gradients. The rows of the head's cross-entropy are shared out; what an objective
    computes besides, every rank computes.

    Args:
        module: The loss, of a network that `apply_context_parallel` has changed.
        mesh: The ranks, in one dimension.
    """
    if mesh.size() > 1:
        module.forward = functools.partial(  # type: ignore[method-assign]
            _shared_loss,
            module.forward,
            RowShare(mesh.get_local_rank(), mesh.size(), mesh.get_group().group_name),
        )


def _shared_loss(forward: Callable[..., LossOutput], share: RowShare, batch: Any, loss: Any) -> LossOutput:
    with share_rows(share):
        summed, counted, added = forward(batch, loss)
    return summed / share.size, counted / share.size, added


class _Sequences(Region):
    """The ranks that have a part of each sequence of a stack.

    Attributes:
        length: Tokens of the sequences of which each rank now has a part; 0: each has the whole.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        super().__init__(mesh, sequence=True)

    def part(self, x: Float[Tensor, "batch position hidden"]) -> Float[Tensor, "batch own hidden"]:
        """Return this rank's positions of x; the gradient of the others is 0 here."""
        return self.own(self.padded(x))

    def to_heads(self, *heads: Heads, length: int) -> tuple[Heads, ...]:
        """Return of what has some positions of all heads all positions of some heads.

        Args:
            heads: Queries, keys or values, (batch, head, own position, head_dim) each; their heads divide by the ranks.
            length: How many positions there are in all.
        """
        parts = [each.unflatten(1, (self.size, -1)) for each in heads]
        counts = [part.shape[2] for part in parts]
        exchanged = _Exchange.apply(torch.cat(parts, dim=2).movedim(1, 0), self.group)
        together = exchanged.movedim(0, 2).flatten(2, 3)[:, :, :length]
        own: tuple[Heads, ...] = together.split(counts, dim=1)
        return own

    def to_positions(self, x: Float[Tensor, "batch position own"]) -> Float[Tensor, "batch own channel"]:
        """Return of what some heads gave at all positions what all heads gave at this rank's positions."""
        parts = self.padded(x).unflatten(1, (self.size, -1)).movedim(1, 0)
        out: Tensor = _Exchange.apply(parts, self.group).movedim(0, 2).flatten(2)
        return out


class _SharedHeads:
    """An attention of which each rank computes some heads, at all positions.

    Args:
        attention: The attention; its `project` is replaced on the instance, and its `output` hooked.
        sequences: The ranks.

    Attributes:
        is_split: Whether it does so now: the residual stream that it reads has a part of the positions.
    """

    def __init__(self, attention: Attention | CrossAttention, sequences: _Sequences) -> None:
        self.sequences, self.is_split = sequences, False
        self._whole: Callable[[Tensor, AttentionContext], Projected] = attention.project
        attention.project = self.project  # type: ignore[method-assign]
        attention.output.register_forward_pre_hook(self.give_back)

    def project(self, x: Tensor, context: AttentionContext) -> Projected:
        """Return queries, keys and values of this rank's heads, at all positions."""
        assert context.positions is not None
        length = _count(context.positions)
        self.is_split = x.shape[1] < length
        return self.exchange(x, context, length) if self.is_split else self._whole(x, context)

    def exchange(self, x: Tensor, context: AttentionContext, length: int) -> Projected:
        """Return them of what each rank has of the residual stream; `length`: how many positions there are in all."""
        raise NotImplementedError

    def give_back(self, output: nn.Module, given: tuple[Tensor]) -> tuple[Tensor] | None:
        """Return what the output projection reads at this rank's positions."""
        return (self.sequences.to_positions(*given),) if self.is_split else None

    def repeated(self, *heads: Heads) -> list[Heads]:
        """Repeat each key/value head so often that they divide by the ranks."""
        size = self.sequences.size
        times = size // math.gcd(heads[0].shape[1], size)
        return [each.repeat_interleave(times, dim=1) if times > 1 else each for each in heads]


class _SelfAttention(_SharedHeads):
    """Queries, keys and values are exchanged at once, and rotated where all positions are."""

    def __init__(self, attention: Attention, sequences: _Sequences) -> None:
        super().__init__(attention, sequences)
        self._whole_mask: Callable[[Tensor, AttentionContext], Mask | None] = attention.mask
        attention.mask = self.mask  # type: ignore[method-assign]

    def exchange(self, x: Tensor, context: AttentionContext, length: int) -> Projected:
        """Return queries, keys and values of this rank's heads."""
        query, key, value = self._whole(x, dataclasses.replace(context, scheme=None))
        query, key, value = self.sequences.to_heads(query, *self.repeated(key, value), length=length)
        if context.scheme is not None and context.positions is not None:
            query, key = context.scheme.rotate(query, key, context.positions)
        return query, key, value

    def mask(self, query: Heads, context: AttentionContext) -> Mask | None:
        """Return the mask of this rank's heads."""
        mask = self._whole_mask(query, context)
        if not self.is_split or mask is None or mask.dim() < 3 or mask.shape[-3] == 1:
            return mask
        return mask.narrow(-3, self.sequences.rank * query.shape[1], query.shape[1])


class _CrossAttention(_SharedHeads):
    """Each rank makes keys and values of its part of what the encoder has read."""

    def exchange(self, x: Tensor, context: AttentionContext, length: int) -> Projected:
        """Return queries, keys and values of this rank's heads."""
        sequences, source = self.sequences, context.source
        assert source is not None and source.hidden is not None
        part = source._replace(hidden=sequences.part(source.hidden))
        query, key, value = self._whole(x, dataclasses.replace(context, source=part))
        (query,) = sequences.to_heads(query, length=length)
        key, value = sequences.to_heads(*self.repeated(key, value), length=source.hidden.shape[1])
        return query, key, value


def _share_stack(stack: nn.Module, sequences: _Sequences) -> None:
    """Split sequences before the first block of a stack, and join them after its last normalization."""
    for module in list(stack.modules()):
        if isinstance(module, Block):
            module.register_forward_pre_hook(functools.partial(_enter_block, sequences))
        elif isinstance(module, Attention):
            _SelfAttention(module, sequences)
        elif isinstance(module, CrossAttention):
            _CrossAttention(module, sequences)
        elif isinstance(module, MixtureOfExperts):
            module.register_forward_hook(functools.partial(_join_routing, sequences))
    made: Any = stack
    made.finish_stream = functools.partial(_finish, made.finish_stream, sequences)


def _enter_block(
    sequences: _Sequences, block: nn.Module, given: tuple[Tensor, AttentionContext]
) -> tuple[Tensor, AttentionContext] | None:
    x, context = given
    assert context.positions is not None
    length = _count(context.positions)
    if x.shape[1] < length:  # by an earlier block
        return None
    is_split = current_share() is not None and length > 1
    sequences.length = length if is_split else 0
    return (sequences.part(x), context) if is_split else None


def _finish(finish: Callable[[Tensor], Tensor], sequences: _Sequences, x: Tensor) -> Tensor:
    try:
        x = finish(x)
    except StageEnd as end:  # what a stage of a pipeline sends to the next one is whole
        if not sequences.length:
            raise
        raise StageEnd(*map(sequences.enter, end.states)) from None
    if not sequences.length:
        return x
    x = sequences.enter(x)
    sequences.length = 0
    return x


def _join_routing(sequences: _Sequences, experts: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
    """Let what a router chose for this rank's tokens be followed by what it chose for those of the other ranks."""
    routing = current_routing()
    if routing is None or not sequences.length:
        return
    for kept in (routing.probabilities, routing.chosen):
        of_tokens = kept[-1].unflatten(0, given[0].shape[:2])
        kept[-1] = sequences.enter(of_tokens).flatten(0, 1)


def _count(places: Places) -> int:
    """Return of how many tokens these are the positions."""
    if isinstance(places.ids, slice):
        return int(places.ids.stop - (places.ids.start or 0))
    return places.ids.shape[1]


class _Exchange(torch.autograd.Function):
    """Give every rank its part of x, by the first dimension, and take the parts of all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str) -> Tensor:
        ctx.group = group
        return exchanged(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return exchanged(grad, ctx.group), None


def exchanged(x: Tensor, group: str) -> Tensor:
    """Return of each rank, in their order, the part of its x that is this rank's by the first dimension."""
    collectives: Any = torch.ops._c10d_functional
    each = [1] * len(x)
    out: Tensor = collectives.wait_tensor(collectives.all_to_all_single(x.contiguous(), each, each, group))
    return out
