"""What the model thought of the token that was chosen, and which it would sooner have taken instead."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class TokenChoice:
    """One decision of a generation.

    The probabilities are the model's own, at temperature 1: before temperature, top-k, top-p and min-p, which decide
    what is drawn; a repetition penalty is in them.

    Attributes:
        token: The token that was chosen.
        probability: Its probability, from 0 to 1.
        alternatives: The likeliest other tokens with theirs, the likeliest first.
    """

    token: int
    probability: float
    alternatives: tuple[tuple[int, float], ...]


def token_choices(
    logits: Float[Tensor, "batch vocabulary"], chosen: Int[Tensor, " batch"], num_alternatives: int
) -> list[TokenChoice]:
    """Return what the logits say of the token chosen in each row, and its likeliest alternatives."""
    probabilities = logits.softmax(dim=-1)
    # One more than asked: the chosen token may be among them.
    values, tokens = torch.topk(probabilities, min(num_alternatives + 1, logits.shape[-1]), dim=-1)
    of_chosen = probabilities.gather(1, chosen[:, None])[:, 0]
    made = []
    for token, probability, others, theirs in zip(
        chosen.tolist(), of_chosen.tolist(), tokens.tolist(), values.tolist(), strict=True
    ):
        ranked = [(other, value) for other, value in zip(others, theirs, strict=True) if other != token]
        made.append(TokenChoice(token, probability, tuple(ranked[:num_alternatives])))
    return made
