"""A cache for models whose keys change as the text grows."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from nbllm.nn.kv_cache import KVCache


class RereadingCache(KVCache):
    """Keys and values, and the tokens themselves, to be read again once keys that were computed no longer hold.

    Under dynamic scaling of rotary frequencies (`RopeScaling`), each token beyond the original context changes the
    angles of all tokens before it, and so what every layer computes. The network then reads the whole text anew at each
    step, which is slow, and equal to a single pass over it.

    Args:
        *shape: As `KVCache` takes them.
        **kind: As `KVCache` takes them.
    """

    def __init__(self, *shape: Any, **kind: Any) -> None:
        super().__init__(*shape, **kind)
        buffer = self.buffers[0]
        self.tokens = torch.zeros(buffer.shape[1], self.max_length, dtype=torch.long, device=buffer.device)
        self._num_held = 0  # leading tokens whose keys and values are in the buffers

    @property
    def holds_all(self) -> bool:
        """Whether keys and values of all tokens are held, as they are in a text of this length."""
        return self._num_held == self.length

    def with_new(self, input_ids: Int[Tensor, "batch position"]) -> Int[Tensor, "batch all"]:
        """Store the tokens that come next and return all so far.

        Raises:
            UserError: They do not fit.
        """
        end = self.length + input_ids.shape[1]
        self.check_length(end)
        self.tokens[:, self.length : end] = input_ids
        return self.tokens[:, :end]

    def advance(self, count: int) -> None:
        """Count `count` more tokens as held, once every layer has stored them."""
        super().advance(count)
        self._num_held = self.length

    def advance_without_keys(self, count: int) -> None:
        """Count `count` more tokens as read, of which no keys and values were stored."""
        super().advance(count)

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        super().crop(length)
        self._num_held = min(self._num_held, length)

    def gather(self, rows: Int[Tensor, " row"]) -> None:
        """Keep the sequences `rows`, in that order; one may be there several times."""
        super().gather(rows)
        self.tokens = self.tokens.index_select(0, rows.to(self.tokens.device))

    def reset(self) -> None:
        """Forget all tokens."""
        super().reset()
        self._num_held = 0
