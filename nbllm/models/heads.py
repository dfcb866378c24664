"""Heads: what reads a network's last hidden states."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbllm.models.config import ModelConfig
from nbllm.nn.activations import ACTIVATIONS
from nbllm.nn.hooks import keep_methods
from nbllm.nn.linear import Linear
from nbllm.nn.normalization import make_norm


@keep_methods
class MaskedLMHead(nn.Module):
    """The head that predicts masked tokens, all but its matrix: that is the token embedding.

    Args:
        config: The model's.

    Attributes:
        bias: (vocabulary,), added to the logits.

    Source: Devlin et al. 2019, arXiv:1810.04805; the layer before the matrix is in its published code alone.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = config.embedding_size or config.hidden_size
        self.dense = Linear(config.hidden_size, size)
        self.activation = ACTIVATIONS[config.activation].function
        self.norm = make_norm(config.norm, size, config.norm_eps)
        self.bias = nn.Parameter(torch.empty(config.vocab_size))

    def forward(self, hidden: Float[Tensor, "... hidden"]) -> Float[Tensor, "... embedding"]:
        """Return what is multiplied with the token embedding."""
        out: Tensor = self.norm(self.activation(self.dense(hidden)))
        return out
