"""How probable a network finds answers: what every loss on preferences is a function of."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from nbllm.nn.linear_log_probabilities import linear_log_probabilities
from nbllm.objectives.base import IGNORED
from nbllm.objectives.causal_lm import HiddenAndHead

_BLOCK = 64  # positions


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


def next_tokens(
    tokens: NDArray[np.int64], targets: NDArray[np.int64], longest: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return inputs and the token after each of them, as wide as the longest of a batch needs.

    The width is a multiple of `_BLOCK`, or that of a whole row: kernels of attention compute the last, partial block
    with other rounding, by which in bfloat16 an answer would be more or less probable in a wider batch. So it is as
    probable in every batch, and under the reference before the first step.

    Args:
        tokens: (..., position), padded at the end.
        targets: (..., position), those that are to be predicted at their own places, -100 elsewhere.
        longest: The largest number of tokens that is no padding.
    """
    most = tokens.shape[-1]
    width = min(-(-(longest - 1) // _BLOCK) * _BLOCK, most)
    after = np.full((*tokens.shape[:-1], width), IGNORED, np.int64)
    after[..., : min(width, most - 1)] = targets[..., 1 : width + 1]
    return tokens[..., :width].astype(np.int64), after


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
