"""A linear layer with a trained update of low rank beside its own weights."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbllm.nn.hooks import keep_methods
from nbllm.nn.linear import Linear, linear


@keep_methods
class LoRALinear(Linear):
    """x weight^T + bias + scale * (x lora_a^T) lora_b^T.

    It holds the very parameters of the layer that it stands in for, under the same names. Its class is another one, so
    that nothing multiplies the weights alone, joined with their neighbours' or in a kernel (`nn.hooks.is_plain`).

    Args:
        base: The layer.
        rank: Rows of `lora_a`, columns of `lora_b`.
        scale: What the update is multiplied by.

    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.
    """

    def __init__(self, base: Linear, *, rank: int, scale: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight = base.weight
        self.register_parameter("bias", base.bias)
        self.scale = scale
        like = base.weight
        self.lora_a = nn.Parameter(torch.zeros(rank, self.in_features, dtype=like.dtype, device=like.device))
        self.lora_b = nn.Parameter(torch.zeros(self.out_features, rank, dtype=like.dtype, device=like.device))

    def forward(self, x: Float[Tensor, "... input"]) -> Float[Tensor, "... output"]:
        """Return what the layer and its update make of x."""
        return linear(x, self.weight, self.bias) + linear(linear(x, self.lora_a), self.lora_b) * self.scale

    def delta(self) -> Float[Tensor, "output input"]:
        """Return what the update adds to the weight, in float32."""
        return (self.lora_b.detach().float() @ self.lora_a.detach().float()) * self.scale
