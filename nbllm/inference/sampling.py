"""Choosing the next token: pure functions on logits, and one draw for each sequence.

The filters set what they exclude to minus infinity and leave the rest untouched; they agree token by token
with transformers' logits processors of the same names.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nbllm.core.errors import UserError
from nbllm.inference.config import SamplingConfig as SamplingConfig

Logits = Float[Tensor, "batch vocabulary"]

_EXCLUDED = float("-inf")
_LIKELIEST = 512  # tokens of a large vocabulary: to sort these is usually enough, and ten times as quick


def check_finite(logits: Logits) -> None:
    """Raise `UserError` where a row's largest logit is NaN or infinite; minus infinity rightly rules a token out."""
    if not bool(torch.isfinite(logits.amax(dim=-1)).all()):
        raise UserError(
            "The model's output is not finite (NaN or infinity), so no token can be chosen.",
            hint="its weights have diverged or are damaged: go back to an earlier checkpoint",
        )


def penalize_repetition(logits: Logits, seen: Bool[Tensor, "batch vocabulary"], penalty: float) -> Logits:
    """Make tokens that were seen less likely: positive logits are divided by `penalty`, negative multiplied.

    Source: Keskar et al. 2019, arXiv:1909.05858, section 4.1 (with the sign rule of its later
    implementations).
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Logits, count: int) -> Logits:
    """Keep the `count` largest logits of each row, and what ties with the last of them.

    Source: Fan et al. 2018, arXiv:1805.04833, section 5.4.
    """
    last = torch.topk(logits, min(count, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < last, _EXCLUDED)


def keep_top_p(logits: Logits, mass: float) -> Logits:
    """Keep the smallest set of tokens whose probability reaches `mass`; at least one.

    Source: Holtzman et al. 2019, arXiv:1904.09751, equations 2 and 3.
    """
    if logits.shape[-1] > _LIKELIEST:
        values, tokens = torch.topk(logits.softmax(dim=-1), _LIKELIEST, dim=-1)
        reached = values.cumsum(dim=-1, dtype=torch.float64)
        if bool((reached[:, -1] >= mass).all()):
            excluded = reached - values >= mass  # what is likelier has the mass without them
            excluded[:, 0] = False
            kept = logits.gather(1, tokens).masked_fill(excluded, _EXCLUDED)
            return torch.full_like(logits, _EXCLUDED).scatter(1, tokens, kept)
    ascending, order = torch.sort(logits, dim=-1)
    excluded = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - mass
    excluded[:, -1] = False
    return logits.masked_fill(torch.zeros_like(excluded).scatter(1, order, excluded), _EXCLUDED)


def keep_min_p(logits: Logits, share: float) -> Logits:
    """Keep tokens with at least `share` times the probability of the likeliest token.

    Source: Nguyen et al. 2024, arXiv:2407.01082, section 3.
    """
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(probabilities < share * probabilities.amax(dim=-1, keepdim=True), _EXCLUDED)


def filter_logits(logits: Logits, config: SamplingConfig) -> Logits:
    """Apply temperature, top-k, top-p and min-p, in this order; the softmax of the result is drawn from.

    The largest logit of each row is subtracted first: a tiny temperature must not divide into infinity.
    """
    assert not config.greedy, "a temperature of 0 divides nothing"
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / config.temperature
    if config.top_k:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p < 1:
        logits = keep_top_p(logits, config.top_p)
    if config.min_p > 0:
        logits = keep_min_p(logits, config.min_p)
    return logits


def draw(logits: Logits, uniform: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Draw one token from each row's softmax by inverting its cumulative distribution.

    Args:
        logits: Filtered logits; minus infinity is never drawn.
        uniform: float64 numbers in [0, 1), one a row.
    """
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    # At most (1 - 2^-53) * total, which rounds to less than the total: the target never lies beyond the last
    # token, and the first sum above it belongs to a token of probability greater than 0.
    target = uniform[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def choose(
    logits: Logits, config: SamplingConfig, generators: list[torch.Generator]
) -> Int[Tensor, " batch"]:
    """Choose the next token of each row.

    Args:
        logits: Finite float32 logits, any repetition penalty already applied.
        config: How to choose.
        generators: One CPU generator a row; each gives one number a call, whatever the others do.
    """
    if config.greedy:
        return logits.argmax(dim=-1)
    uniform = torch.stack([torch.rand((), generator=each, dtype=torch.float64) for each in generators])
    return draw(filter_logits(logits, config), uniform.to(logits.device))
