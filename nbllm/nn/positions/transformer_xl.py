"""Transformer-XL's relative positions: each query asks for a distance as it asks for a key."""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbllm.nn.hooks import keep_methods
from nbllm.nn.linear import Linear
from nbllm.nn.positions.base import Places, Positions, Shape
from nbllm.nn.positions.sinusoidal import Waves


@keep_methods
class TransformerXLPositions(Positions):
    """Scores query i and key j by (q_i + u) k_j + (q_i + v) W_R R_(i - j), R being the waves of a distance.

    There is no limit. u and v are the same in all layers; each layer has a W_R of its own.

    Args:
        hidden_size: Width of the waves; even.
        num_heads: Query heads.
        head_dim: Width of a head.
        num_layers: Layers.
        causal: Whether no query sees a key after it.

    Attributes:
        content_bias: (head, head_dim), u.
        position_bias: (head, head_dim), v.
        relative: W_R of each layer.

    Raises:
        UserError: `hidden_size` is odd.

    Source: Dai et al. 2019, arXiv:1901.02860, section 3.3; Gopher (Rae et al. 2021, arXiv:2112.11446, section 3.1).
    """

    depends_on_queries: ClassVar[bool] = True

    def __init__(
        self, hidden_size: int, num_heads: int, head_dim: int, num_layers: int, *, causal: bool
    ) -> None:
        super().__init__()
        self.causal = causal
        self.content_bias = nn.Parameter(torch.empty(num_heads, head_dim))
        self.position_bias = nn.Parameter(torch.empty(num_heads, head_dim))
        self.relative = nn.ModuleList(
            Linear(hidden_size, num_heads * head_dim, bias=False) for _ in range(num_layers)
        )
        self._waves = Waves(hidden_size)

    @classmethod
    def make(cls, shape: Shape) -> TransformerXLPositions:
        """Return the scheme for a model of this shape."""
        return cls(shape.hidden_size, shape.num_heads, shape.head_dim, shape.num_layers, causal=shape.causal)

    @property
    def label(self) -> str:
        """What it is, in words."""
        return "relative positions of Transformer-XL"

    def rotate(
        self,
        query: Float[Tensor, "batch head position head_dim"],
        key: Float[Tensor, "batch kv_head position head_dim"],
        positions: Places,
    ) -> tuple[
        Float[Tensor, "batch head position head_dim"], Float[Tensor, "batch kv_head position head_dim"]
    ]:
        """Return q + u and the keys."""
        return query + self.content_bias[:, None], key

    def score(
        self,
        layer: int,
        query: Float[Tensor, "batch head query head_dim"],
        query_positions: Places,
        key_positions: Places,
    ) -> Float[Tensor, "batch head query key"]:
        """Return (q + v) W_R R of each distance between query and key; `query` is q + u, as `rotate` made it."""
        asking = query + (self.position_bias - self.content_bias)[:, None]
        waves = self._distances(key_positions.length, query.device).to(query.dtype)  # (distance, hidden)
        rows, heads, queries, _ = query.shape
        weight = cast(Linear, self.relative[layer]).weight.unflatten(0, (heads, -1))
        # Either order of the three factors gives the same; which is cheaper depends on the number of queries.
        few = rows * queries * (heads * len(waves) + weight[..., 0].numel()) < len(waves) * (
            weight[..., 0].numel() + rows * queries
        )
        scores: Tensor = asking @ weight @ waves.t() if few else asking @ (weight @ waves.t())
        query_ids, key_ids = query_positions.on(query.device), key_positions.on(query.device)
        distance = query_ids[:, :, None] - key_ids[:, None, :]
        place = distance.clamp(min=0) if self.causal else distance + key_positions.length - 1
        return scores.gather(-1, place[:, None].expand(rows, heads, -1, -1))

    def _distances(self, length: int, device: torch.device) -> Float[Tensor, "distance hidden"]:
        """Return the waves of the distances from 0 to `length` - 1, or from 1 - `length` where keys may come after."""
        waves = self._waves.table(length, device)[:length]
        if self.causal:
            return waves
        back = waves[1:].flip(0).unflatten(1, (-1, 2)) * torch.tensor([-1.0, 1.0], device=device)
        return torch.cat((back.flatten(1), waves))
