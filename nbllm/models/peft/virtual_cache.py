"""A cache that also holds virtual tokens, and does not count them."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


class VirtualCache:
    """A cache whose first columns are those of virtual tokens, which it neither counts nor forgets. A `Cache`.

    Args:
        inner: The network's own cache.
        virtual: How many virtual tokens there are.

    Attributes:
        inner: As given; it counts them.
        can_crop: As the inner one's.
    """

    def __init__(self, inner: Any, virtual: int) -> None:
        self.inner, self.virtual = inner, virtual
        self.can_crop: bool = inner.can_crop
        self.max_length: int = inner.max_length - virtual

    @property
    def length(self) -> int:
        """How many tokens of each text are held."""
        return max(int(self.inner.length) - self.virtual, 0)

    @property
    def num_bytes(self) -> int:
        """Memory that it takes, in bytes."""
        return int(self.inner.num_bytes)

    @property
    def has_source(self) -> bool:
        """Whether it holds the keys and values of a text that an encoder has read."""
        return bool(self.inner.has_source)

    def advance(self, count: int) -> None:
        """Count `count` more tokens as held."""
        self.inner.advance(count)

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self.inner.crop(self.virtual + length if length else 0)

    def gather(self, rows: Int[Tensor, " row"]) -> None:
        """Keep the sequences `rows`, in that order."""
        self.inner.gather(rows)

    def reset(self) -> None:
        """Forget everything."""
        self.inner.reset()

    def fits(self, batch_size: int, max_length: int, dtype: torch.dtype, device: torch.device) -> bool:
        """Return whether, once reset, it can hold `batch_size` sequences of at least `max_length` tokens."""
        return bool(self.inner.fits(batch_size, self.virtual + max_length, dtype, device))
