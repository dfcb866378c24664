"""From the rewards of sampled answers to the advantages of their tokens.

Arrays have a row for each answer and a column for each of its tokens, from the first: (sequence, token). `mask` is true
at the tokens of answers, the end token included, and false at the padding behind them.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_SMALLEST_STD = 1e-4  # beside which a standard deviation is added, as in trl

PerToken = Float[Tensor, "sequence token"]
Mask = Bool[Tensor, "sequence token"]
PerSequence = Float[Tensor, " sequence"]


def at_last_token(scores: PerSequence, mask: Mask) -> PerToken:
    """Return each answer's score at its last token, and 0 at all others; an empty answer has nowhere to put it."""
    last = mask.sum(1) - 1
    columns = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(columns == last[:, None], scores[:, None], 0.0)


def token_rewards(scores: PerSequence, kl: PerToken, mask: Mask, *, coefficient: float) -> PerToken:
    """Return the reward of each token: the score at the last one, less the divergence at each.

    Args:
        scores: Of the answers.
        kl: log policy - log reference of each token.
        mask: Where answers are.
        coefficient: Of the divergence, beta.

    Source: Ouyang et al. 2022, arXiv:2203.02155, section 3.5, equation 2.
    """
    return at_last_token(scores, mask) - coefficient * kl * mask


def generalized_advantages(
    rewards: PerToken, values: PerToken, mask: Mask, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[PerToken, PerToken]:
    """Return the advantage of each token and its return, which the value is to predict.

    Args:
        rewards: Of each token.
        values: What was expected before each token, of the rewards from there on.
        mask: Where answers are; after the last token nothing is expected.
        gamma: What a reward counts for one token earlier.
        lam: How far the rewards themselves count, instead of the values: 1 for all.

    Source: Schulman et al. 2015, arXiv:1506.02438, equation 16.
    """
    rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(values)
    later = torch.zeros_like(values[:, 0])
    expected = torch.zeros_like(later)
    for column in range(values.shape[1] - 1, -1, -1):
        error = rewards[:, column] + gamma * expected - values[:, column]
        later = (error + gamma * lam * later) * mask[:, column]
        advantages[:, column], expected = later, values[:, column]
    return advantages, advantages + values


def whitened(values: PerToken, mask: Mask) -> PerToken:
    """Return values with mean 0 and variance 1 over the tokens of answers, and 0 elsewhere."""
    chosen = values[mask]
    if not len(chosen):
        return torch.zeros_like(values)
    std = chosen.std() if len(chosen) > 1 else chosen.new_ones(())
    return (values - chosen.mean()) / (std + 1e-8) * mask


def group_advantages(scores: PerSequence, samples: int, *, scale: bool) -> PerSequence:
    """Return how much better each answer is than the mean of the answers to the same prompt.

    Args:
        scores: Of the answers; those to one prompt follow each other.
        samples: Answers to each prompt.
        scale: Whether it is divided by the standard deviation of the group (GRPO); Dr. GRPO does not.

    Source: Shao et al. 2024, arXiv:2402.03300, section 4.1.2; Liu et al. 2025, arXiv:2503.20783, section 3.2.
    """
    groups = scores.view(-1, samples)
    centred = groups - groups.mean(1, keepdim=True)
    if scale:
        centred = centred / (groups.std(1, keepdim=True) + _SMALLEST_STD)
    return centred.flatten()


def leave_one_out_advantages(scores: PerSequence, samples: int) -> PerSequence:
    """Return how much better each answer is than the mean of the other answers to the same prompt.

    Args:
        scores: Of the answers, at least two to each prompt; those to one prompt follow each other.
        samples: Answers to each prompt.

    Source: Ahmadian et al. 2024, arXiv:2402.14740, section 2.2; Kool et al. 2019.
    """
    groups = scores.view(-1, samples)
    others = (groups.sum(1, keepdim=True) - groups) / (samples - 1)
    return (groups - others).flatten()
