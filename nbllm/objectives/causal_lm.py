"""Causal language modelling: predict each token from those before it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from nbllm.nn.linear_cross_entropy import linear_cross_entropy


class HiddenAndHead(Protocol):
    """A decoder: hidden states, and the matrix that turns them into logits."""

    def hidden(self, input_ids: Tensor) -> Tensor:
        """Return the final hidden states, (batch, position, hidden)."""

    @property
    def head_weight(self) -> Tensor:
        """The output matrix, (vocabulary, hidden)."""


def causal_lm_loss(model: HiddenAndHead, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of `targets`, summed over tokens, in nats.

    A sum, not a mean: whoever accumulates over batches or ranks divides once, by the global token count.
    The logits exist only chunk by chunk (`nn.linear_cross_entropy`).

    Args:
        model: The decoder.
        inputs: Token ids, (batch, position).
        targets: The token that follows each input, (batch, position); -100 is not counted.

    Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", eq. 1.
    """
    hidden = model.hidden(inputs)
    return linear_cross_entropy(hidden.flatten(0, 1), model.head_weight, targets.flatten())
