"""How a model knows the order of its tokens: learned vectors, or rotated queries and keys."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nbllm.nn.hooks import keep_methods

Rotation = tuple[Float[Tensor, "... position half"], Float[Tensor, "... position half"]]


@keep_methods
class LearnedPositions(nn.Module):
    """A learned vector a position, added to the token's.

    Args:
        max_positions: How many positions there are.
        hidden_size: Width of the residual stream.
    """

    def __init__(self, max_positions: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_positions, hidden_size))

    def forward(
        self, positions: Int[Tensor, "batch position"] | slice
    ) -> Float[Tensor, "... position hidden"]:
        """Return the vectors at `positions`; a slice (one for the whole batch) costs no gather."""
        return self.weight[positions]


@keep_methods
class RotaryPositions(nn.Module):
    """Cosines and sines that turn each pair of a query's or key's components by position * frequency.

    Component i is paired with i + head_dim / 2, as in transformers, so that weights need no permutation.
    Tables are kept and grow by doubling; positions have no upper bound.

    Args:
        head_dim: Width of a head; even.
        theta: Base of the frequencies.

    Source: Su et al. 2021, arXiv:2104.09864, eq. 34.
    """

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim, self.theta = head_dim, theta
        self._table: Rotation | None = None  # no buffer: it is neither state nor ever trained

    def forward(
        self, positions: Int[Tensor, "batch position"] | slice, length: int, device: torch.device
    ) -> Rotation:
        """Return the cosines and sines at `positions`.

        Args:
            positions: (batch, position), or a slice that serves the whole batch.
            length: One more than the highest position.
            device: Where they are needed.
        """
        cos, sin = self.table(length, device)
        return cos[positions], sin[positions]

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
    x: Float[Tensor, "batch position head head_dim"], rotation: Rotation
) -> Float[Tensor, "batch position head head_dim"]:
    """Turn queries or keys by their position's angles.

    Args:
        x: (batch, position, heads, head_dim).
        rotation: Cosines and sines, each (position, head_dim / 2) or (batch, position, head_dim / 2).
    """
    cos, sin = (table.to(x.dtype).unsqueeze(-2) for table in rotation)
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
