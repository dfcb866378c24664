"""The position-wise feed-forward part, plain or gated."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nbllm.nn.activations import ACTIVATIONS
from nbllm.nn.fused_feed_forward import gelu_feed_forward, swiglu
from nbllm.nn.gelu import gelu_tanh
from nbllm.nn.hooks import is_plain, keep_methods
from nbllm.nn.joined import JoinedLinears
from nbllm.nn.linear import Linear


@keep_methods
class FeedForward(JoinedLinears):
    """down(activation(up(x))), or gated: down(activation(gate(x)) * up(x)).

    Args:
        hidden_size: Width of the residual stream.
        intermediate_size: Width between the two matrices.
        activation: A name in `nn.activations.ACTIVATIONS`.
        gated: Whether a second projection, `gate`, multiplies the first (Shazeer 2020, arXiv:2002.05202).
        bias: Whether the matrices have biases.
    """

    def __init__(
        self, hidden_size: int, intermediate_size: int, *, activation: str, gated: bool, bias: bool
    ) -> None:
        super().__init__(*(("gate", "up") if gated else ()))
        self.activation = ACTIVATIONS[activation].function
        self.gate = Linear(hidden_size, intermediate_size, bias=bias) if gated else None
        self.up = Linear(hidden_size, intermediate_size, bias=bias)
        self.down = Linear(intermediate_size, hidden_size, bias=bias)
        self.join()

    def forward(self, x: Float[Tensor, "batch position hidden"]) -> Float[Tensor, "batch position hidden"]:
        """Transform each position by itself; in few passes where kernels can."""
        plain = is_plain(self.up, Linear) and is_plain(self.down, Linear)
        if plain and self.activation is gelu_tanh and self.gate is None:
            fused = gelu_feed_forward(x, self.up.weight, self.up.bias, self.down.weight, self.down.bias)
            if fused is not None:
                return fused
        inner = self.activation(self.up(x)) if self.gate is None else self._multiply_gate(self.gate, x)
        out: Tensor = self.down(inner)
        return out

    def _multiply_gate(
        self, gate: nn.Module, x: Float[Tensor, "batch position hidden"]
    ) -> Float[Tensor, "batch position intermediate"]:
        """Return activation(gate(x)) * up(x)."""
        together = self.multiply_joined(x)
        if together is None:
            out: Tensor = self.activation(gate(x)) * self.up(x)
            return out
        fused = swiglu(together) if self.activation is F.silu else None
        if fused is not None:
            return fused
        first, second = together.chunk(2, dim=-1)
        return self.activation(first) * second
