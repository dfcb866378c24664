"""Keys and values that stand before a text that is read whole, as an adapter's prefix does."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nbllm.nn.kv_cache import KVCache


class KeyPrefix(KVCache):
    """What stands for a cache when a text is read whole: it holds the prefix alone, through which gradients pass.

    Args:
        prefix: (layer, 2, kv_head, token, head_dim), keys and values.
        batch: How many texts there are.

    Attributes:
        length: How many tokens the prefix has.
    """

    has_source = False  # of an encoder-decoder: the source is read anew
    source_mask: Tensor | None = None

    def __init__(self, prefix: Float[Tensor, "layer 2 kv_head token head_dim"], batch: int) -> None:
        self.buffers = []  # nothing is kept of the text
        self._prefix, self._batch = prefix, batch
        self.length = prefix.shape[3]

    def update(
        self,
        layer: int,
        key: Float[Tensor, "batch kv_head position head_dim"],
        value: Float[Tensor, "batch kv_head position head_dim"],
    ) -> tuple[Float[Tensor, "batch kv_head key head_dim"], Float[Tensor, "batch kv_head key head_dim"]]:
        """Return the prefix's keys and values, and after them one layer's own."""
        first, second = (
            torch.cat((mine.expand(self._batch, -1, -1, -1), own), dim=2)
            for mine, own in zip(self._prefix[layer], (key, value), strict=True)
        )
        return first, second

    def advance(self, count: int) -> None:
        """A text is read once: nothing is kept of it."""
