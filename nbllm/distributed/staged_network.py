"""A network that computes one stage of a pipeline at a time.

Whoever computes a loss calls the network as if it were whole (`begin_stage` says which stage it is to compute). Its
residual stream begins with what the stage before has sent; where the blocks of the stage end, `StageEnd` leaves the
computation with what is to be sent on; the last stage comes to the end of it.

Between two stages travel the residual stream and, within the decoder of an encoder-decoder, the encoder's last hidden
states with it. Masks and positions do not: every rank of a pipeline reads the same batch and computes them itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from torch import Tensor, nn

from nbllm.core.errors import UserError
from nbllm.models.config import ModelConfig
from nbllm.models.encoder_decoder import EncoderDecoder
from nbllm.models.network import Network
from nbllm.nn.positions import Positions


@dataclasses.dataclass(frozen=True)
class Stage:
    """A run of consecutive blocks.

    Attributes:
        index: Its place in the pipeline, from 0.
        blocks: The numbers of its blocks.
        num_blocks: Of the whole network.
    """

    index: int
    blocks: range
    num_blocks: int

    @property
    def is_first(self) -> bool:
        """Whether it embeds the tokens."""
        return self.blocks.start == 0

    @property
    def is_last(self) -> bool:
        """Whether it computes head and loss."""
        return self.blocks.stop == self.num_blocks


class EarlierPositions(Positions):
    """Stands for positions that have entered the stream in an earlier stage."""

    has_spans = True


class StageEnd(Exception):
    """Leaves the computation of a loss where a stage that is not the last ends.

    Attributes:
        states: What travels to the next stage.
    """

    def __init__(self, *states: Tensor) -> None:
        self.states = states


class _StreamShapes(Exception):
    """Leaves the computation of a loss where a network begins to read; has the shapes of the tokens of each stack."""

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        self.shapes = shapes


def second_reading(objective: str = "This objective") -> UserError:
    """Return the error of an objective that asks for several forward passes."""
    return UserError(
        f"{objective} reads the network more than once for a batch, which a pipeline cannot do.",
        where="Plan",
        hint="Use pipeline=1.",
    )


class _StagedNetwork(nn.Module):
    """A network that lacks what other ranks compute.

    Attributes:
        vocabulary_held: The parameters with a row for each token that are here, as `vocabulary_parameters` returns.
    """

    vocabulary_held: Sequence[tuple[nn.Module, str]] = ()

    @property
    def vocabulary_parameters(self) -> list[tuple[nn.Module, str]]:
        return list(self.vocabulary_held)


class _StagedStack(nn.Module):
    """A stack of blocks that computes a run of them at a time: `begin_stage` says which.

    Attributes:
        run: The numbers of the blocks; None: the shapes of what is read are asked for.
        num_blocks: Of the whole stack.
        received: The stream as the stage before has left it; None: it begins here.
    """

    run: range | None = None
    num_blocks = 0
    received: Tensor | None = None

    def begin_stream(self, read: Tensor, *more: Any) -> Tensor:
        if self.run is None:
            raise _StreamShapes(tuple(read.shape))
        if self.run.start == 0:
            return super().begin_stream(read, *more)  # type: ignore[misc, no-any-return]
        if self.received is None:
            raise second_reading()
        received, self.received = self.received, None
        return received

    def numbered_blocks(self) -> Iterable[tuple[int, nn.Module]]:
        assert self.run is not None and isinstance(self.blocks, nn.ModuleList)
        numbered = ((int(name), block) for name, block in self.blocks.named_children())
        return [(number, block) for number, block in numbered if number in self.run]

    def finish_stream(self, x: Tensor) -> Tensor:
        assert self.run is not None
        if self.run.stop < self.num_blocks:
            raise StageEnd(x)
        return super().finish_stream(x)  # type: ignore[misc, no-any-return]


class _StagedEncoderDecoder(_StagedNetwork):
    """An encoder-decoder whose stacks are divided.

    Attributes:
        config, encoder, decoder, embedding: As `EncoderDecoder` has them; the embedding is None where none is needed.
        source: (batch, source, hidden), the encoder's last hidden states, once they are received or computed.
        shapes_asked: Whether the shapes of what is read are asked for.
        has_read: Whether `hidden` was called in this stage's computation.
    """

    config: ModelConfig
    encoder: Any
    decoder: Any
    embedding: nn.Embedding | None
    source: Tensor | None = None
    shapes_asked = False
    has_read = False

    def hidden(self, input_ids: Tensor, decoder_input_ids: Tensor, **given: Any) -> Tensor:
        if self.shapes_asked:
            raise _StreamShapes(tuple(input_ids.shape), tuple(decoder_input_ids.shape))
        if self.has_read:
            raise second_reading()
        self.has_read = True
        try:
            return super().hidden(input_ids, decoder_input_ids, **given)  # type: ignore[misc, no-any-return]
        except StageEnd as end:
            if self.source is None:
                raise
            raise StageEnd(self.source, *end.states) from None

    def encode(self, input_ids: Tensor, *, attention_mask: Tensor | None = None) -> Tensor:
        if self.source is None:
            source: Tensor = super().encode(input_ids, attention_mask=attention_mask)  # type: ignore[misc]
            if not self.decoder.run:
                raise StageEnd(source)
            self.source = source
        return self.source

    def embed_tokens(self, input_ids: Tensor) -> Tensor:
        if self.embedding is not None:
            return super().embed_tokens(input_ids)  # type: ignore[misc, no-any-return]
        like = next(self.parameters())  # only its shape is read: the stream goes on with what was received
        return like.new_empty(()).expand(*input_ids.shape, self.config.hidden_size)


def compute_in_stages(network: Network, vocabulary: Sequence[tuple[nn.Module, str]]) -> None:
    """Let a network, in place, compute the stages that it is told.

    Args:
        network: The network without what it is not to compute.
        vocabulary: `vocabulary_parameters` of the whole network.
    """
    bases: tuple[type[nn.Module], ...] = (_StagedNetwork, _StagedStack)
    if isinstance(network, EncoderDecoder):
        bases = (_StagedEncoderDecoder,)
        for stack in (network.encoder, network.decoder):
            _mix_in(stack, (_StagedStack,))
    _mix_in(network, bases)
    here = set(network.modules())
    held = [
        (module, name) for module, name in vocabulary if module in here and getattr(module, name) is not None
    ]
    cast(_StagedNetwork, network).vocabulary_held = held


def _mix_in(module: nn.Module, bases: tuple[type[nn.Module], ...]) -> None:
    kind = type(module)
    module.__class__ = type(f"Staged{kind.__name__}", (*bases, kind), {"__module__": kind.__module__})


def begin_stage(network: nn.Module, stage: Stage, received: Sequence[Tensor]) -> None:
    """Let a network that `compute_in_stages` was given compute one stage in the next call of its `hidden`.

    Args:
        network: The network.
        stage: One of its stages.
        received: What the stage before has sent; nothing for the first.
    """
    if not isinstance(network, _StagedEncoderDecoder):
        _continue(network, stage.blocks, stage.num_blocks, received[0] if received else None)
        return
    encoder_blocks = stage.num_blocks - network.config.num_decoder_layers
    start, stop = stage.blocks.start, stage.blocks.stop
    in_encoder = range(min(start, encoder_blocks), min(stop, encoder_blocks))
    in_decoder = range(max(start - encoder_blocks, 0), max(stop - encoder_blocks, 0))
    _continue(network.encoder, in_encoder, encoder_blocks, received[0] if received and in_encoder else None)
    _continue(
        network.decoder,
        in_decoder,
        stage.num_blocks - encoder_blocks,
        received[1] if len(received) > 1 else None,
    )
    network.source = received[0] if received and not in_encoder else None
    network.shapes_asked = network.has_read = False


def _continue(stack: nn.Module, run: range, num_blocks: int, received: Tensor | None) -> None:
    assert isinstance(stack, _StagedStack)
    stack.run, stack.num_blocks, stack.received = run, num_blocks, received


def shapes_read(network: nn.Module, compute: Callable[[], Any]) -> list[tuple[int, int]]:
    """Return the shape, (batch, position), of the tokens that each stack of a divided network reads in a batch.

    Args:
        network: The network; it computes nothing.
        compute: Computes the loss of the batch with it.
    """
    if isinstance(network, _StagedEncoderDecoder):
        network.shapes_asked = True
    else:
        assert isinstance(network, _StagedStack)
        network.run = None
    try:
        compute()
    except _StreamShapes as read:
        return [(shape[0], shape[1]) for shape in read.shapes]
    raise UserError(
        "This objective does not read the network's hidden states, where a pipeline begins.",
        where="Plan",
        hint="Use pipeline=1.",
    )


def shapes_sent(
    stage: Stage, network: Network, read: Sequence[tuple[int, int]]
) -> list[tuple[int, int, int]]:
    """Return the shapes, (batch, position, hidden), of what a stage sends to the next one.

    Args:
        stage: The stage; not the last.
        network: The network.
        read: What `shapes_read` returned.
    """
    width = network.config.hidden_size
    if isinstance(network, EncoderDecoder):
        in_decoder = stage.blocks.stop > stage.num_blocks - network.config.num_decoder_layers
        read = read if in_decoder else read[:1]
    return [(*shape, width) for shape in read]
