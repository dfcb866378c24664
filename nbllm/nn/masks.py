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


def prefix_mask(
    prefix_lengths: Int[Tensor, " batch"],
    num_tokens: int,
    real: Bool[Tensor, "batch key"] | Int[Tensor, "batch key"] | None = None,
) -> Bool[Tensor, "batch 1 {num_tokens} {num_tokens}"]:
    """Causal, and the first tokens of each sequence all see each other.

    Args:
        prefix_lengths: (batch,), how many, padding not counted.
        num_tokens: Tokens of each sequence, which are both queries and keys.
        real: (batch, key), nonzero where there is a real token. None: all are.

    Source: Raffel et al. 2020, arXiv:1910.10683, figure 3 ("causal with prefix").
    """
    if real is None:
        places = torch.arange(num_tokens, device=prefix_lengths.device)[None]
        causal: Tensor = causal_mask(num_tokens, num_tokens, device=prefix_lengths.device)
    else:
        places = (real.long().cumsum(1) - 1).where(real.bool(), num_tokens)  # padding is in no prefix
        causal = padded_causal_mask(real, num_tokens)
    return causal | (places < prefix_lengths[:, None])[:, None, None, :]


def same_document_mask(documents: Int[Tensor, "batch position"]) -> Bool[Tensor, "batch 1 position position"]:
    """Let each token see those of its own document, before and after it: a block-diagonal mask.

    Args:
        documents: (batch, position), the document of each token.
    """
    return (documents[:, :, None] == documents[:, None, :])[:, None]


def restarted_positions(documents: Int[Tensor, "batch position"]) -> Int[Tensor, "batch position"]:
    """Return each token's place in its document, from 0, where the tokens of a document lie side by side.

    Args:
        documents: (batch, position), the document of each token.
    """
    places = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return places - places.where(begins, 0).cummax(1).values


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


def with_bias(mask: Mask | None, bias: Float[Tensor, ...] | None) -> Mask | None:
    """Return a mask that also adds a position scheme's bias to the scores.

    Args:
        mask: True where a query may see a key, or values that are added to the scores; None: every key is visible.
        bias: What the scheme adds, broadcastable to (batch, heads, query, key); None: nothing.
    """
    if bias is None or mask is None:
        return mask if bias is None else bias
    return bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask
