"""Sinusoidal positions: waves of many lengths, added to the token's vector."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nbllm.core.errors import UserError
from nbllm.nn.hooks import keep_methods
from nbllm.nn.positions.base import Places, Positions, Shape


class Waves:
    """A table of sines and cosines of many wavelengths, which is kept and grows by doubling.

    Args:
        size: Width of a position's row; even.

    Raises:
        UserError: `size` is odd.
    """

    def __init__(self, size: int) -> None:
        if size % 2:
            raise UserError(f"Sinusoidal positions come in pairs; a width of {size} is odd.")
        self.size = size
        self._table: Tensor | None = None

    def table(self, length: int, device: torch.device) -> Float[Tensor, "position size"]:
        """Return the waves at the first `length` positions or more."""
        table = self._table
        if table is None or len(table) < length or table.device != device:
            rows = max(length, 256) if table is None else max(length, 2 * len(table))
            self._table = table = self._make_table(rows).to(device)
        return table

    def _make_table(self, length: int) -> Tensor:
        # Outside inference mode: a table made while generating must also serve a later training step.
        with torch.inference_mode(False), torch.no_grad():
            # In double precision: the angle of a late position has few exact decimals in float32.
            exponents = torch.arange(0, self.size, 2, dtype=torch.float64, device="cpu") / self.size
            places = torch.arange(length, dtype=torch.float64, device="cpu")
            angles = places[:, None] / 10000**exponents
            return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1).float()


@keep_methods
class SinusoidalPositions(Positions):
    """Adds sin(position / 10000^(2i / size)) to component 2i of a token's vector and the cosine to component 2i + 1.

    Positions have no upper bound.

    Args:
        size: Width of the vectors; even.

    Raises:
        UserError: `size` is odd.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self._waves = Waves(size)  # no buffer: it is neither state nor ever trained

    @classmethod
    def make(cls, shape: Shape) -> SinusoidalPositions:
        """Return the scheme for a model of this shape."""
        return cls(shape.hidden_size)

    @property
    def label(self) -> str:
        """What it is, in words."""
        return "sinusoidal positions"

    def embed(
        self, x: Float[Tensor, "batch position hidden"], positions: Places
    ) -> Float[Tensor, "batch position hidden"]:
        """Return the embedded tokens plus the waves at their positions."""
        return x + self.table(positions.length, x.device)[positions.ids].to(x.dtype)

    def table(self, length: int, device: torch.device) -> Float[Tensor, "position hidden"]:
        """Return the waves at the first `length` positions or more."""
        return self._waves.table(length, device)
