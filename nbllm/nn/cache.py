"""What a network keeps of the tokens that it has read, so that none is computed twice."""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor


class Cache(Protocol):
    """The state of a batch of sequences after the tokens read so far, all of one length, padding included.

    What it holds is a matter between a network and its cache (keys and values, a recurrent state): the layers add to it
    in a forward pass, at the end of which the network calls `advance` once. Generation uses the methods below.

    Attributes:
        length: How many tokens of each sequence are held.
        max_length: The most that fit.
        can_crop: Whether `crop` can forget some tokens and keep others; a recurrent state cannot.
    """

    length: int
    max_length: int
    can_crop: bool

    @property
    def num_bytes(self) -> int:
        """Memory that it takes, in bytes."""

    def advance(self, count: int) -> None:
        """Count `count` more tokens as held, once every layer has stored them."""

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens."""

    def gather(self, rows: Int[Tensor, " row"]) -> None:
        """Keep the sequences `rows`, in that order; one may be there several times.

        As many rows as before stay in the same memory.
        """

    def reset(self) -> None:
        """Forget everything, so that other sequences of the same number can be read."""

    def fits(self, batch_size: int, max_length: int, dtype: torch.dtype, device: torch.device) -> bool:
        """Return whether, once reset, it can hold `batch_size` sequences of at least `max_length` tokens."""
