"""The reference: attention as its formula says, every score in memory."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nbllm.nn.attention_backends.registry import BACKENDS
from nbllm.nn.masks import Mask, causal_mask


@BACKENDS.register("eager")
def attend(
    query: Float[Tensor, "batch head query head_dim"],
    key: Float[Tensor, "batch kv_head key head_dim"],
    value: Float[Tensor, "batch kv_head key head_dim"],
    mask: Mask | None,
    causal: bool,
    scale: float,
) -> Float[Tensor, "batch head query head_dim"]:
    """Return softmax(scale * query key^T + mask) value.

    Source: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; shared key/value heads: Ainslie et al. 2023,
    arXiv:2305.13245.
    """
    return attend_with_softcap(query, key, value, mask, causal, scale, softcap=0.0)


def attend_with_softcap(
    query: Float[Tensor, "batch head query head_dim"],
    key: Float[Tensor, "batch kv_head key head_dim"],
    value: Float[Tensor, "batch kv_head key head_dim"],
    mask: Mask | None,
    causal: bool,
    scale: float,
    *,
    softcap: float,
) -> Float[Tensor, "batch head query head_dim"]:
    """Return softmax(softcap * tanh(scale * query key^T / softcap) + mask) value; a softcap of 0 bounds nothing.

    Source: Gemma Team 2024 (Gemma 2), arXiv:2408.00118, section 2.
    """
    weights = attention_weights(query, key, mask, causal, scale, softcap)
    return weights @ repeat_kv(value, query.shape[1])


def attention_weights(
    query: Float[Tensor, "batch head query head_dim"],
    key: Float[Tensor, "batch kv_head key head_dim"],
    mask: Mask | None,
    causal: bool,
    scale: float,
    softcap: float = 0.0,
) -> Float[Tensor, "batch head query key"]:
    """Return the weight that each query gives each key; every row sums to one. The softmax is taken in float32."""
    scores = (query @ repeat_kv(key, query.shape[1]).transpose(-2, -1)) * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.float()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    if causal and query.shape[2] > 1:
        visible = causal_mask(query.shape[2], key.shape[2], device=query.device)
        scores = scores.masked_fill(~visible, -torch.inf)
    return scores.softmax(dim=-1).to(query.dtype)


def repeat_kv(
    heads: Float[Tensor, "batch kv_head key head_dim"], num_heads: int
) -> Float[Tensor, "batch {num_heads} key head_dim"]:
    """Repeat each key/value head for the query heads that share it; no copy when there is nothing to do."""
    groups = num_heads // heads.shape[1]
    return heads if groups == 1 else heads.repeat_interleave(groups, dim=1)
