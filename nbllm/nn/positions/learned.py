"""Learned positions: a vector each, added to the token's."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbllm.nn.hooks import keep_methods
from nbllm.nn.positions.base import Places, Positions, Shape


@keep_methods
class LearnedPositions(Positions):
    """A learned vector for each position, added to that of the token.

    Args:
        max_positions: How many positions there are.
        hidden_size: Width of the vectors.
        offset: Rows before that of position 0; position -1, of what is not counted, has the last of them.
    """

    def __init__(self, max_positions: int, hidden_size: int, offset: int = 0) -> None:
        super().__init__()
        self.offset = offset
        self.weight = nn.Parameter(torch.empty(offset + max_positions, hidden_size))

    @classmethod
    def make(cls, shape: Shape) -> LearnedPositions:
        """Return the scheme for a model of this shape."""
        return cls(shape.max_positions, shape.hidden_size, shape.offset)

    @property
    def label(self) -> str:
        """Its name in tables for people."""
        return "learned positions"

    @property
    def limit(self) -> int:
        """How many positions there are."""
        return len(self.weight) - self.offset

    def embed(
        self, x: Float[Tensor, "batch position hidden"], positions: Places
    ) -> Float[Tensor, "batch position hidden"]:
        """Return the embedded tokens plus the vectors of their positions."""
        rows = self.weight[self.offset :] if isinstance(positions.ids, slice) else self.weight
        return x + rows[positions.ids if isinstance(positions.ids, slice) else positions.ids + self.offset]
