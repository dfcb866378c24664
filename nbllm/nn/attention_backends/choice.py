"""Which attention backend serves given shapes best."""

from __future__ import annotations

from torch import Tensor


def choose(query: Tensor, key: Tensor, *, causal: bool, mask: Tensor | None) -> str:
    """Return the name of the backend for these inputs.

    Args:
        query: (batch, heads, query, head_dim).
        key: (batch, kv_heads, key, head_dim).
        causal: As in `attend`.
        mask: As in `attend`.
    """
    return "sdpa"
