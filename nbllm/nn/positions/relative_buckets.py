"""Relative positions in buckets, as in T5: each head learns what to add to the scores at each distance."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nbllm.nn.hooks import keep_methods
from nbllm.nn.positions.base import Places, Positions, Shape

NUM_BUCKETS = 32
MAX_DISTANCE = 128


@keep_methods
class RelativeBuckets(Positions):
    """Adds a learned scalar for each head and bucket of distances to the scores; there is no limit.

    Near distances have a bucket each, farther ones share one with ever more others; from 128 on all share one. The same
    is added in every layer.

    Args:
        num_heads: Query heads.
        causal: Whether a token sees only those before it: then all buckets are for these, else half.

    Source: Raffel et al. 2020, arXiv:1910.10683, section 2.1.
    """

    def __init__(self, num_heads: int, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.weight = nn.Parameter(torch.empty(NUM_BUCKETS, num_heads))

    @classmethod
    def make(cls, shape: Shape) -> RelativeBuckets:
        """Return the scheme for a model of this shape."""
        return cls(shape.num_heads, causal=shape.causal)

    @property
    def label(self) -> str:
        """What it is, in words."""
        return f"relative positions in {NUM_BUCKETS} buckets"

    def bias(self, query_positions: Places, key_positions: Places) -> Float[Tensor, "#batch head query key"]:
        """Return what is added to the scores, (batch, head, query, key); one batch where positions are alike."""
        device = self.weight.device
        query, key = query_positions.on(device), key_positions.on(device)
        found = buckets(key[:, None, :] - query[:, :, None], causal=self.causal)
        return self.weight[found].permute(0, 3, 1, 2)


def buckets(distances: Int[Tensor, ...], *, causal: bool) -> Int[Tensor, ...]:
    """Return the bucket of each distance, key position less query position.

    Args:
        distances: Of any shape.
        causal: Whether keys after the query are never seen; they are counted as at distance 0.
    """
    half = NUM_BUCKETS if causal else NUM_BUCKETS // 2
    after = torch.zeros_like(distances) if causal else (distances > 0).long() * half
    away = (-distances).clamp_(min=0) if causal else distances.abs()
    exact = half // 2
    # In transformers' own order of operations, so that both agree at the borders of buckets.
    share = torch.log(away.float().clamp(min=1) / exact) / math.log(MAX_DISTANCE / exact) * (half - exact)
    far = (exact + share.long()).clamp(max=half - 1)
    return after + torch.where(away < exact, away, far)
