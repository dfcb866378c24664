"""Where attention backends enter themselves."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from nbllm.core.registry import Registry


class Backend(Protocol):
    """What a backend is: a function of the projected heads.

    Shapes: query (batch, heads, query, head_dim); key and value (batch, kv_heads, key, head_dim) with
    heads a multiple of kv_heads; mask broadcastable to (batch, heads, query, key), boolean (True = may see)
    or floating (added to the scores). `causal` is aligned bottom-right: the last query sees every key.
    Every query sees at least one key. Returns (batch, heads, query, head_dim).
    """

    def __call__(  # noqa: D102
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float
    ) -> Tensor: ...


BACKENDS: Registry[Backend] = Registry("attention backend")
