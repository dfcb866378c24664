"""What a position scheme is."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nbllm.core.errors import UserError
from nbllm.nn.hooks import keep_methods
from nbllm.nn.positions.scaling import RopeScaling


class Places(NamedTuple):
    """The positions of some tokens in their sequences.

    Attributes:
        ids: (batch, position), or a slice that holds for the whole batch and needs no gather.
        length: One more than the highest of them.
        spans: (batch, position), the position of each in the blank that it fills, from 1; 0: it fills none. For a
            scheme with `has_spans`; None: no token fills one.
    """

    ids: Int[Tensor, "batch position"] | slice
    length: int
    spans: Int[Tensor, "batch position"] | None = None

    def on(self, device: torch.device) -> Int[Tensor, "#batch position"]:
        """Return the positions as a tensor: (batch, position), or (1, position) where they hold for all."""
        if isinstance(self.ids, slice):
            return torch.arange(self.length, device=device)[None, self.ids]
        return self.ids.to(device)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """What of a model's shape its position scheme depends on.

    Attributes:
        hidden_size: Width of the embedded tokens.
        num_heads: Query heads.
        head_dim: Width of a head.
        max_positions: How many positions a scheme that has a limit has.
        theta: Base of the rotary frequencies.
        rotary_dim: Components of a head that are rotated; None: all.
        rotary_interleaved: Whether neighbouring components are rotated together.
        rope_scaling: How the rotary frequencies are scaled; None: they are not.
        offset: Rows of the learned positions before that of position 0.
        causal: Whether a token sees only those before it.
        num_layers: Layers that have parameters of their own.
    """

    hidden_size: int
    num_heads: int
    head_dim: int
    max_positions: int
    theta: float = 10000.0
    rotary_dim: int | None = None
    rotary_interleaved: bool = False
    rope_scaling: RopeScaling | None = None
    offset: int = 0
    causal: bool = True
    num_layers: int = 1


@keep_methods
class Positions(nn.Module):
    """A position scheme: how positions enter a model. Each hook changes nothing unless overridden.

    Attributes:
        depends_on_queries: Whether what it adds to the scores depends on the queries too (`score`).
        has_spans: Whether a token has a second position, in the blank that it fills (`Places.spans`).
    """

    depends_on_queries: ClassVar[bool] = False
    has_spans: ClassVar[bool] = False

    @classmethod
    def make(cls, shape: Shape) -> Positions:
        """Return the scheme for a model of this shape."""
        return cls()

    @property
    def label(self) -> str:
        """Its name in tables for people."""
        return type(self).__name__

    @property
    def limit(self) -> int | None:
        """How many positions there are; None: no limit."""
        return None

    def embed(
        self, x: Float[Tensor, "batch position hidden"], positions: Places
    ) -> Float[Tensor, "batch position hidden"]:
        """Return the embedded tokens with their positions."""
        return x

    def rotate(
        self,
        query: Float[Tensor, "batch head position head_dim"],
        key: Float[Tensor, "batch kv_head position head_dim"],
        positions: Places,
    ) -> tuple[
        Float[Tensor, "batch head position head_dim"], Float[Tensor, "batch kv_head position head_dim"]
    ]:
        """Return queries and keys changed by their positions."""
        return query, key

    def bias(
        self, query_positions: Places, key_positions: Places
    ) -> Float[Tensor, "#batch #head query key"] | None:
        """Return what is added to the scores, broadcastable to (batch, head, query, key); None: nothing."""
        return None

    def score(
        self,
        layer: int,
        query: Float[Tensor, "batch head query head_dim"],
        query_positions: Places,
        key_positions: Places,
    ) -> Float[Tensor, "batch head query key"]:
        """Return what is added to a layer's scores before they are scaled, of a scheme that `depends_on_queries`.

        Args:
            layer: Which layer, from 0.
            query: Its queries, as `rotate` returned them.
            query_positions: Of the queries.
            key_positions: Of all keys.
        """
        raise NotImplementedError


def check_length(scheme: Positions, length: int, positions: Int[Tensor, "batch position"] | None) -> int:
    """Return one more than the highest position; refuse what a scheme cannot number.

    Args:
        scheme: The scheme.
        length: How many tokens a sequence has, those in a cache included.
        positions: Of the tokens; None: counted from 0.

    Raises:
        UserError: There are more tokens than positions.
    """
    if positions is not None and (scheme.limit is None or length > scheme.limit):
        length = int(positions.max()) + 1
    if scheme.limit is not None and length > scheme.limit:
        raise UserError(
            f"{length} tokens were given; this model has {scheme.limit} positions.",
            hint="Shorten the text, or make the model with a greater max_positions.",
        )
    return length
