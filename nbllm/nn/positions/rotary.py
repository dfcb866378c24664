"""Rotary positions: queries and keys are rotated."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nbllm.nn.hooks import keep_methods
from nbllm.nn.positions.base import Places, Positions, Shape
from nbllm.nn.positions.scaling import RopeScaling, frequencies

Rotation = tuple[Float[Tensor, "... position half"], Float[Tensor, "... position half"]]


@keep_methods
class RotaryPositions(Positions):
    """Rotates each pair of a query's or key's components by the angle position * frequency.

    Component i is paired with i + rotary_dim / 2, as in transformers, so that weights need no permutation; or 2i with
    2i + 1 where the layout is interleaved (GPT-J). Components from rotary_dim on stay as they are.
    Tables of cosines and sines are kept and grow by doubling; positions have no upper bound. Where a scaling depends on
    the length of the text, each text beyond the original context has angles of its own.

    Args:
        head_dim: Width of a head; even.
        theta: Base of the frequencies.
        rotary_dim: How many components are rotated, the first ones; even; None: all.
        interleaved: Whether neighbours are pairs.
        scaling: How the frequencies are scaled for a longer context; None: they are not.

    Source: Su et al. 2021, arXiv:2104.09864, eq. 34.
    """

    def __init__(
        self,
        head_dim: int,
        theta: float,
        *,
        rotary_dim: int | None = None,
        interleaved: bool = False,
        scaling: RopeScaling | None = None,
    ) -> None:
        super().__init__()
        self.head_dim, self.theta, self.scaling = head_dim, theta, scaling
        self.rotary_dim, self.interleaved = head_dim if rotary_dim is None else rotary_dim, interleaved
        self._table: Rotation | None = None  # no buffer: it is neither state nor ever trained

    @classmethod
    def make(cls, shape: Shape) -> RotaryPositions:
        """Return the scheme for a model of this shape."""
        return cls(
            shape.head_dim,
            shape.theta,
            rotary_dim=shape.rotary_dim,
            interleaved=shape.rotary_interleaved,
            scaling=shape.rope_scaling,
        )

    @property
    def label(self) -> str:
        """Its name in tables for people."""
        part = "" if self.rotary_dim == self.head_dim else f" of {self.rotary_dim} components"
        pairs = ", interleaved" if self.interleaved else ""
        scaled = "" if self.scaling is None else f", {self.scaling.label}"
        return f"rotary positions{part}, base {self.theta:g}{pairs}{scaled}"

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
        return self._rotate(query, rotation), self._rotate(key, rotation)

    def _rotate(
        self, x: Float[Tensor, "batch head position head_dim"], rotation: Rotation
    ) -> Float[Tensor, "batch head position head_dim"]:
        """Rotate the first `rotary_dim` components, pair by pair."""
        if self.rotary_dim == self.head_dim and not self.interleaved:
            return rotate(x, rotation)
        first, rest = x[..., : self.rotary_dim], x[..., self.rotary_dim :]
        if self.interleaved:  # to halves and back
            halves = first.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
            first = rotate(halves, rotation).unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
        else:
            first = rotate(first, rotation)
        return torch.cat((first, rest), dim=-1)

    def angles(self, positions: Places, device: torch.device) -> Rotation:
        """Return the cosines and sines at `positions`: (position, rotary_dim / 2), or one such for each sequence."""
        if self.scaling is not None and self.scaling.depends_on_length(positions.length):
            ids = positions.on(device)
            found = self.scaling.frequencies_of_lengths(self.theta, self.rotary_dim, ids.amax(1) + 1)
            angles = ids[..., None].float() * found[:, None]
            return angles.cos(), angles.sin()
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
            # On the CPU, so that every device has the same.
            if self.scaling is None:
                found, factor = frequencies(self.theta, self.rotary_dim), 1.0
            else:
                found = self.scaling.frequencies(self.theta, self.rotary_dim)
                factor = self.scaling.attention_factor
            angles = torch.arange(length, dtype=torch.float32, device="cpu")[:, None] * found
            return (angles.cos() * factor).to(device), (angles.sin() * factor).to(device)


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
