"""The position-wise feed-forward part, plain or gated."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nbllm.nn.gelu import gelu_tanh
from nbllm.nn.linear import Linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": gelu_tanh,
    "gelu": F.gelu,
    "silu": F.silu,
    "relu": F.relu,
}


class FeedForward(nn.Module):
    """down(activation(up(x))), or gated: down(activation(gate(x)) * up(x)).

    Gate and up are one matrix, `up`: its first half of rows is the gate.

    Args:
        hidden_size: Width of the residual stream.
        intermediate_size: Width between the two matrices.
        activation: A name in `ACTIVATIONS`.
        gated: Whether a second projection multiplies the activated one (Shazeer 2020, arXiv:2002.05202).
        bias: Whether the matrices have biases.
    """

    def __init__(
        self, hidden_size: int, intermediate_size: int, *, activation: str, gated: bool, bias: bool
    ) -> None:
        super().__init__()
        self.gated = gated
        self.activation = ACTIVATIONS[activation]
        self.up = Linear(hidden_size, intermediate_size * (2 if gated else 1), bias=bias)
        self.down = Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, x: Float[Tensor, "batch position hidden"]) -> Float[Tensor, "batch position hidden"]:
        """Transform each position by itself."""
        inner = self.up(x)
        if self.gated:
            gate, inner = inner.chunk(2, dim=-1)
            inner = self.activation(gate) * inner
        else:
            inner = self.activation(inner)
        out: Tensor = self.down(inner)
        return out
