"""ALiBi: scores fall linearly with the distance to the key, in each head at a rate of its own."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from nbllm.nn.hooks import keep_methods
from nbllm.nn.positions.base import Places, Positions, Shape


@keep_methods
class ALiBiPositions(Positions):
    """Subtracts slope * |query position - key position| from each score; nothing is learned, and there is no limit.

    Args:
        num_heads: Query heads.

    Attributes:
        heads: Those of them that are computed here: all, or the part that tensor parallelism leaves to a process.

    Source: Press et al. 2022, arXiv:2108.12409, section 3, and its published code where the number of heads is no power
        of two; BLOOM (arXiv:2211.05100).
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.heads = num_heads, slice(None)

    @classmethod
    def make(cls, shape: Shape) -> ALiBiPositions:
        """Return the scheme for a model of this shape."""
        return cls(shape.num_heads)

    @property
    def label(self) -> str:
        """What it is, in words."""
        return f"ALiBi, slopes from {slopes(self.num_heads)[0]:.3g}"

    def bias(self, query_positions: Places, key_positions: Places) -> Float[Tensor, "#batch head query key"]:
        """Return what is added to the scores, (batch, head, query, key); one batch where positions are alike."""
        ids = next(
            (each.ids for each in (query_positions, key_positions) if isinstance(each.ids, Tensor)), None
        )
        device = torch.get_default_device() if ids is None else ids.device
        query, key = query_positions.on(device), key_positions.on(device)
        distance = (query[:, :, None] - key[:, None, :]).abs().float()
        return (
            -torch.tensor(slopes(self.num_heads)[self.heads], device=device)[:, None, None]
            * distance[:, None]
        )


def slopes(num_heads: int) -> list[float]:
    """Return the slope of each head: 2^(-8/n), 2^(-16/n), ..., for n the next power of two below `num_heads`.

    The heads beyond n have every other slope of twice as many heads.
    """
    whole = 1 << math.floor(math.log2(num_heads))
    first = [2.0 ** (-8 * (head + 1) / whole) for head in range(whole)]
    return first + [2.0 ** (-4 * (2 * head + 1) / whole) for head in range(num_heads - whole)]
