"""Which keys a query may see, as boolean tensors: True = visible."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# What attention takes, broadcastable to (batch, heads, query, key): True where a query may see a key, or
# values that are added to the scores.
Mask = Bool[Tensor, "..."] | Float[Tensor, "..."]


def causal_mask(
    num_queries: int, num_keys: int, *, device: torch.device | None = None
) -> Bool[Tensor, "{num_queries} {num_keys}"]:
    """Let each query see the keys up to its own position; the last query is aligned with the last key."""
    full = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return full.tril(num_keys - num_queries)


def sliding_window_mask(
    query_positions: Int[Tensor, "#batch query"], key_positions: Int[Tensor, "#batch key"], window: int
) -> Bool[Tensor, "#batch 1 query key"]:
    """Let each query see the keys less than `window` positions before it: with itself, `window` keys.

    Later keys are visible too; to be combined with a causal mask.

    Source: Jiang et al. 2023 (Mistral 7B), arXiv:2310.06825, section 2.
    """
    return key_positions[:, None, None, :] > query_positions[:, None, :, None] - window


def padded_causal_mask(
    real: Bool[Tensor, "batch key"] | Int[Tensor, "batch key"], num_queries: int
) -> Bool[Tensor, "batch 1 {num_queries} key"]:
    """Causal, and padding is visible only to itself.

    A padded position sees itself so that no row of scores is empty: the softmax of an empty row is NaN, and NaN
    would reach the real tokens through the values of the next layer.

    Args:
        real: (batch, key), nonzero where there is a real token.
        num_queries: How many of the last keys are also queries.
    """
    num_keys = real.shape[1]
    visible = real.bool()[:, None, None, :]
    keys = torch.arange(num_keys, device=real.device)
    queries = keys[num_keys - num_queries :, None]
    return ((keys <= queries) & visible) | (keys == queries)


def padding_mask(
    real: Bool[Tensor, "batch key"] | Int[Tensor, "batch key"],
) -> Bool[Tensor, "batch 1 1 key"]:
    """Let each query see all real tokens, before and after it.

    A sequence of nothing but padding sees it all, so that no row of scores is empty.

    Args:
        real: (batch, key), nonzero where there is a real token.
    """
    visible = real.bool()
    return (visible | ~visible.any(1, keepdim=True))[:, None, None, :]
