"""The losses of policies and of value functions, and how a loss of tokens becomes one number.

Arrays have a row for each answer and a column for each of its tokens, (sequence, token); what is not of an answer is
left out of every sum and every count.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

PerToken = Float[Tensor, "sequence token"]
Mask = Bool[Tensor, "sequence token"]

AVERAGES = ("sequence", "fixed", "token")


def clipped_surrogate(
    log_probs: Float[Tensor, "*shape"],
    old: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    *,
    clip: float,
) -> tuple[Float[Tensor, "*shape"], Bool[Tensor, "*shape"]]:
    """Return PPO's loss, and where the clipping takes its gradient away.

    Args:
        log_probs: Of tokens, or of whole answers, by the policy as it is.
        old: The same by the policy that sampled them.
        advantages: Of them.
        clip: How far the ratio of both may leave 1, to either side.

    Source: Schulman et al. 2017, arXiv:1707.06347, equation 7.
    """
    ratio = (log_probs - old).exp()
    bounded = ratio.clamp(1 - clip, 1 + clip)
    is_clipped = torch.where(advantages > 0, ratio > 1 + clip, ratio < 1 - clip) & (advantages != 0)
    return -torch.minimum(ratio * advantages, bounded * advantages), is_clipped


def value_loss(values: PerToken, old: PerToken, returns: PerToken, *, clip: float) -> PerToken:
    """Return half the squared error of the values; what leaves the old ones by more than `clip` gains nothing.

    Args:
        values: As predicted now.
        old: As predicted when the answers were sampled.
        returns: What is to be predicted.
        clip: How far a value may go from the old one.
    """
    bounded = old + (values - old).clamp(-clip, clip)
    return torch.maximum((values - returns).square(), (bounded - returns).square()) / 2


def averaged(losses: PerToken, mask: Mask, *, over: str, longest: int) -> tuple[Tensor, int]:
    """Return a loss of tokens as a sum, and the count that it is to be divided by.

    Args:
        losses: Of each token.
        mask: Where answers are.
        over: What each counts as much as the other: "sequence" (GRPO: the mean of an answer's tokens, then of the
            answers), "fixed" (Dr. GRPO: every token of every answer, as if all were `longest`), or "token" (DAPO:
            every token there is).
        longest: The most tokens that an answer may have.

    Source: Shao et al. 2024, arXiv:2402.03300, equation 3; Liu et al. 2025, arXiv:2503.20783, section 3.2; Yu et al.
        2025, arXiv:2503.14476, equation 12.
    """
    losses = torch.where(mask, losses, 0.0)
    if over == "sequence":
        return (losses.sum(1) / mask.sum(1).clamp(min=1)).sum(), len(losses)
    return losses.sum(), int(mask.sum()) if over == "token" else len(losses) * longest
