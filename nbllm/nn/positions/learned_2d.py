"""Two learned positions of each token: in the text, and in the blank that it fills."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbllm.core.errors import UserError
from nbllm.nn.hooks import keep_methods
from nbllm.nn.positions.base import Places, Positions, Shape


@keep_methods
class Learned2DPositions(Positions):
    """Adds two learned vectors to that of the token: one for its position in the text, one for that in its blank.

    A token of the text has its own position there, and 0 in a blank. A token that fills a blank has the blank's
    position in the text, and counts from 1 in it, so that nothing tells how long the blank is. Where no positions in
    blanks are given (`Places.spans`), all tokens are of the text.

    Args:
        max_positions: How many positions there are in a text, and in a blank.
        hidden_size: Width of the vectors.

    Source: Du et al. 2022 (GLM), arXiv:2103.10360, section 2.3.
    """

    has_spans: ClassVar[bool] = True

    def __init__(self, max_positions: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_positions, hidden_size))
        self.span_weight = nn.Parameter(torch.empty(1 + max_positions, hidden_size))

    @classmethod
    def make(cls, shape: Shape) -> Learned2DPositions:
        """Return the scheme for a model of this shape."""
        return cls(shape.max_positions, shape.hidden_size)

    @property
    def label(self) -> str:
        """What it is, in words."""
        return "learned positions in the text and in a blank"

    @property
    def limit(self) -> int:
        """How many positions there are."""
        return len(self.weight)

    def embed(
        self, x: Float[Tensor, "batch position hidden"], positions: Places
    ) -> Float[Tensor, "batch position hidden"]:
        """Return the embedded tokens plus the vectors of both of their positions.

        Raises:
            UserError: A blank is longer than there are positions in one.
        """
        x = x + self.weight[positions.ids]
        if positions.spans is None:
            return x + self.span_weight[0]
        if positions.spans.numel() and int(positions.spans.max()) >= len(self.span_weight):
            raise UserError(
                f"A blank is filled by {int(positions.spans.max())} tokens; this model has {self.limit} positions "
                "in one.",
                hint="Use shorter blanks, or make the model with a greater max_positions.",
            )
        return x + self.span_weight[positions.spans]
