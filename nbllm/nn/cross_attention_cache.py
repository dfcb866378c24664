"""What the decoder of an encoder-decoder keeps: keys and values of its tokens, and of the text that was read."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nbllm.nn.kv_cache import KVCache


class CrossAttentionCache(KVCache):
    """A `KVCache` of a decoder's tokens that also holds the keys and values of the encoder's text, for each layer.

    Arguments as `KVCache` takes them; the text may be of any length.

    Attributes:
        source_mask: (batch, source), which of the text's tokens are real; None: all.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._source: dict[int, Tensor] = {}
        self.source_mask: Bool[Tensor, "batch source"] | None = None

    @property
    def has_source(self) -> bool:
        """Whether a text was read, so that every layer has its keys and values."""
        return len(self._source) == len(self.buffers)

    def source(
        self, layer: int
    ) -> tuple[
        Float[Tensor, "batch kv_head source head_dim"], Float[Tensor, "batch kv_head source head_dim"]
    ]:
        """Return one layer's keys and values of the text."""
        key, value = self._source[layer]
        return key, value

    def keep_source(
        self,
        layer: int,
        key: Float[Tensor, "batch kv_head source head_dim"],
        value: Float[Tensor, "batch kv_head source head_dim"],
    ) -> None:
        """Keep one layer's keys and values of the text until `reset`."""
        self._source[layer] = torch.stack([key.detach(), value.detach()])

    def gather(self, rows: Int[Tensor, " row"]) -> None:
        """Keep the sequences `rows` and their texts, in that order; one may be there several times."""
        super().gather(rows)
        rows = rows.to(self.buffers[0].device)
        self._source = {layer: held.index_select(1, rows) for layer, held in self._source.items()}
        if self.source_mask is not None:
            self.source_mask = self.source_mask.index_select(0, rows)

    def reset(self) -> None:
        """Forget all tokens and the text."""
        super().reset()
        self._source, self.source_mask = {}, None

    @property
    def num_bytes(self) -> int:
        """Memory of all keys and values, in bytes."""
        return super().num_bytes + sum(held.nbytes for held in self._source.values())
