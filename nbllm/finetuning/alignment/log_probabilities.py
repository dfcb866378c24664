"""How probable a network finds answers: what every loss on preferences is a function of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nbllm.nn.linear_log_probabilities import linear_log_probabilities
from nbllm.objectives.base import IGNORED
from nbllm.objectives.causal_lm import HiddenAndHead


class TokenLogProbabilities(NamedTuple):
    """Log-probabilities of the tokens of answers.

    Attributes:
        each: (sequence, position), float32; 0 where nothing is predicted.
        counted: (sequence, position), whether something is.
    """

    each: Float[Tensor, "sequence position"]
    counted: Tensor

    def sums(self) -> Float[Tensor, " sequence"]:
        """Return the log-probability of each answer; 0 where none of it is left."""
        return self.each.sum(-1)

    def means(self) -> Float[Tensor, " sequence"]:
        """Return that of each answer's tokens on average; 0 where none is left."""
        return self.each.sum(-1) / self.counted.sum(-1).clamp(min=1)


def log_probabilities(
    network: HiddenAndHead,
    inputs: Int[Tensor, "sequence position"],
    targets: Int[Tensor, "sequence position"],
) -> TokenLogProbabilities:
    """Return how probable a network finds tokens, given those before; with gradient.

    The head is computed only where something is predicted, and its logits are never held all at once.

    Args:
        network: A causal network.
        inputs: (sequence, position), padded at the end.
        targets: (sequence, position), the token after each input; -100 where it is not predicted.
    """
    counted = targets != IGNORED
    found, _ = linear_log_probabilities(
        network.hidden(inputs)[counted],
        network.head_weight,
        targets[counted],
        bias=network.head_bias,
        softcap=network.logit_softcap,
    )
    zeros = torch.zeros(targets.shape, dtype=torch.float32, device=targets.device)
    return TokenLogProbabilities(zeros.masked_scatter(counted, found), counted)
