"""How positions enter a model: as learned vectors, or by rotating queries and keys."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nbllm.core.errors import UserError
from nbllm.nn.hooks import keep_methods

Rotation = tuple[Float[Tensor, "... position half"], Float[Tensor, "... position half"]]


class Places(NamedTuple):
    """The positions of some tokens in their sequences.

    Attributes:
        ids: (batch, position), or a slice that holds for the whole batch and needs no gather.
        length: One more than the highest of them.
    """

    ids: Int[Tensor, "batch position"] | slice
    length: int


@keep_methods
class Positions(nn.Module):
    """A position scheme: how positions enter a model. Each hook changes nothing unless overridden."""

    @classmethod
    def make(
        cls, *, hidden_size: int, head_dim: int, max_positions: int, theta: float, offset: int
    ) -> Positions:
        """Return the scheme for a model of these sizes; arguments as in `make_positions`."""
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
    def make(
        cls, *, hidden_size: int, head_dim: int, max_positions: int, theta: float, offset: int
    ) -> LearnedPositions:
        """Return the scheme for a model of these sizes; arguments as in `make_positions`."""
        return cls(max_positions, hidden_size, offset)

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
    def make(
        cls, *, hidden_size: int, head_dim: int, max_positions: int, theta: float, offset: int
    ) -> RotaryPositions:
        """Return the scheme for a model of these sizes; arguments as in `make_positions`."""
        return cls(head_dim, theta)

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


POSITIONS: dict[str, type[Positions]] = {"learned": LearnedPositions, "rotary": RotaryPositions}


def make_positions(
    kind: str, *, hidden_size: int, head_dim: int, max_positions: int, theta: float, offset: int = 0
) -> Positions:
    """Return a position scheme.

    Args:
        kind: A name in `POSITIONS`.
        hidden_size: Width of the embedded tokens.
        head_dim: Width of a head.
        max_positions: How many positions a scheme that has a limit has.
        theta: Base of the rotary frequencies.
        offset: Rows of the learned positions before that of position 0.
    """
    return POSITIONS[kind].make(
        hidden_size=hidden_size,
        head_dim=head_dim,
        max_positions=max_positions,
        theta=theta,
        offset=offset,
    )


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
