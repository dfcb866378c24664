"""PyTorch's fused `scaled_dot_product_attention`."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nbllm.nn.attention_backends import eager
from nbllm.nn.attention_backends.registry import BACKENDS
from nbllm.nn.masks import Mask, causal_mask

# With fewer keys than a CPU's widest vectors have elements, torch 2.13's kernel finds the largest score by comparisons
# that NaN never wins: a query whose every score is NaN counts as one that sees no key, and its result is 0, not NaN.
_MIN_KEYS = 16


@BACKENDS.register("sdpa")
def attend(
    query: Float[Tensor, "batch head query head_dim"],
    key: Float[Tensor, "batch kv_head key head_dim"],
    value: Float[Tensor, "batch kv_head key head_dim"],
    mask: Mask | None,
    causal: bool,
    scale: float,
) -> Float[Tensor, "batch head query head_dim"]:
    """Call the fused kernel, giving it `is_causal` only where its top-left alignment is ours.

    On the CPU very few keys go to the reference, so that NaN is never lost.
    """
    num_queries, num_keys = query.shape[2], key.shape[2]
    if num_keys < _MIN_KEYS and query.device.type == "cpu":
        return eager.attend(query, key, value, mask, causal, scale)
    causal = causal and num_queries > 1
    if causal and (mask is not None or num_queries != num_keys):
        visible = causal_mask(num_queries, num_keys, device=query.device)
        if mask is None:
            mask = visible
        elif mask.is_floating_point():
            mask = mask.masked_fill(~visible, float("-inf"))
        else:
            mask = mask & visible
        causal = False
    if mask is not None and mask.is_floating_point():
        mask = mask.to(query.dtype)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
