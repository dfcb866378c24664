"""How probable the model found a token that was chosen, and which others it found likely."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class TokenProbability:
    """A generated token with its probability and its likeliest alternatives.

    The probabilities are the model's own, at temperature 1: before temperature, top-k, top-p and min-p, which decide
    what is drawn, but after the repetition penalty.

    Attributes:
        token: The token that was chosen.
        probability: Its probability, from 0 to 1.
        alternatives: The likeliest other tokens with their probabilities, the likeliest first.
    """

    token: int
    probability: float
    alternatives: tuple[tuple[int, float], ...]


def token_probabilities(
    logits: Float[Tensor, "batch vocabulary"], chosen: Int[Tensor, " batch"], num_alternatives: int
) -> list[TokenProbability]:
    """Return the probability of the token chosen in each row, and its `num_alternatives` likeliest alternatives."""
    probabilities = logits.softmax(dim=-1)
    # One more than asked: the chosen token may be among them.
    values, tokens = torch.topk(probabilities, min(num_alternatives + 1, logits.shape[-1]), dim=-1)
    of_chosen = probabilities.gather(1, chosen[:, None])[:, 0]
    made = []
    for token, probability, others, theirs in zip(
        chosen.tolist(), of_chosen.tolist(), tokens.tolist(), values.tolist(), strict=True
    ):
        ranked = [(other, value) for other, value in zip(others, theirs, strict=True) if other != token]
        made.append(TokenProbability(token, probability, tuple(ranked[:num_alternatives])))
    return made
