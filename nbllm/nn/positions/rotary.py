"""Rotary positions: queries and keys are rotated."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nbllm.nn.hooks import keep_methods
from nbllm.nn.positions.base import Places, Positions, Shape

Rotation = tuple[Float[Tensor, "... position half"], Float[Tensor, "... position half"]]


@keep_methods
class RotaryPositions(Positions):
    """Rotates each pair of a query's or key's components by the angle position * frequency.

    Component i is paired with i + head_dim / 2, as in transformers, so that weights need no permutation.
    Tables of cosines and sines are kept and grow by doubling; positions have no upper bound.

    Args:
        head_dim: Width of a head; even.
        theta: Base of the frequencies.

    Source: Su et al. 2021, arXiv:2104.09864, eq. 34.
    """

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim, self.theta = head_dim, theta
        self._table: Rotation | None = None  # no buffer: it is neither state nor ever trained

    @classmethod
    def make(cls, shape: Shape) -> RotaryPositions:
        """Return the scheme for a model of this shape."""
        return cls(shape.head_dim, shape.theta)

    @property
    def label(self) -> str:
        """Its name in tables for people."""
        return f"rotary positions, base {self.theta:g}"

    def rotate(
        self,
        query: Float[Tensor, "batch head position head_dim"],
        key: Float[Tensor, "batch kv_head position head_dim"],
        positions: Places,
    ) -> tuple[
        Float[Tensor, "batch head position head_dim"], Float[Tensor, "batch kv_head position head_dim"]
    ]:
        """Return queries and keys rotated to their positions."""
        rotation = self.angles(positions, query.device)
        return rotate(query, rotation), rotate(key, rotation)

    def angles(self, positions: Places, device: torch.device) -> Rotation:
        """Return the cosines and sines at `positions`: (position, head_dim / 2), or one such for each sequence."""
        cos, sin = self.table(positions.length, device)
        return cos[positions.ids], sin[positions.ids]

    def table(self, length: int, device: torch.device) -> Rotation:
        """Return the cosines and sines of at least the first `length` positions."""
        table = self._table
        if table is None or table[0].shape[0] < length or table[0].device != device:
            rows = max(length, 256) if table is None else max(length, 2 * table[0].shape[0])
            self._table = table = self._make_table(rows, device)
        return table

    def _make_table(self, length: int, device: torch.device) -> Rotation:
        # Outside inference mode: a table made while generating must also serve a later training step.
        with torch.inference_mode(False), torch.no_grad():
            # In transformers' own order of operations, on the CPU, so that both agree to the last bit.
            exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
            frequencies = 1.0 / (self.theta**exponents)
            angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
            return angles.cos().to(device), angles.sin().to(device)


def rotate(
    x: Float[Tensor, "batch head position head_dim"], rotation: Rotation
) -> Float[Tensor, "batch head position head_dim"]:
    """Rotate queries or keys by the angles of their positions.

    Args:
        x: (batch, heads, position, head_dim).
        rotation: Cosines and sines, each (position, head_dim / 2) or (batch, position, head_dim / 2).
    """
    cos, sin = (table.to(x.dtype).unsqueeze(-3) for table in rotation)
    out: Tensor = _Rotate.apply(x, torch.cat((cos, cos), dim=-1), sin)
    return out


class _Rotate(torch.autograd.Function):
    """The rotation as one node: its gradient is the rotation back, for which only the angles are kept.

    Left to autograd it takes twice the memory traffic, and keeps its input.
    """

    @staticmethod
    def forward(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = sin.shape[-1]
        out = x * cos
        out[..., :half].addcmul_(x[..., half:], sin, value=-1)
        out[..., half:].addcmul_(x[..., :half], sin)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _Rotate.apply(gradients[0], cos, -sin), None, None
