"""The position-wise feed-forward part, plain or gated."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nbllm.nn.fused_feed_forward import gelu_feed_forward, swiglu
from nbllm.nn.gelu import gelu_tanh
from nbllm.nn.hooks import is_plain, keep_methods
from nbllm.nn.linear import Linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": gelu_tanh,
    "gelu": F.gelu,
    "silu": F.silu,
    "relu": F.relu,
}


@keep_methods
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
        """Transform each position by itself; in few passes where kernels can."""
        plain = is_plain(self.up, Linear) and is_plain(self.down, Linear)
        if plain and self.activation is gelu_tanh and not self.gated:
            fused = gelu_feed_forward(x, self.up.weight, self.up.bias, self.down.weight, self.down.bias)
            if fused is not None:
                return fused
        out: Tensor = self.down(self._activate(self.up(x)))
        return out

    def _activate(
        self, inner: Float[Tensor, "batch position up"]
    ) -> Float[Tensor, "batch position intermediate"]:
        if not self.gated:
            return self.activation(inner)
        fused = swiglu(inner) if self.activation is F.silu else None
        if fused is not None:
            return fused
        gate, up = inner.chunk(2, dim=-1)
        return self.activation(gate) * up
