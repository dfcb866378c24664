"""The keys and values of the tokens already seen."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nbllm.core.errors import UserError


class KVCache:
    """Keys and values of every layer, in buffers allocated once; for inference, without gradients. A `Cache`.

    A forward pass calls `update` once a layer and `advance` once at its end.

    Args:
        num_layers: Layers of the model.
        batch: Sequences held.
        num_kv_heads: Key/value heads of a layer.
        head_dim: Width of a head.
        max_length: Most tokens that fit.
        dtype: Of keys and values.
        device: Where they are held.

    Attributes:
        buffers: One a layer: (2, batch, kv_head, max_length, head_dim), keys and then values.
        length: How many tokens of each sequence are held, padding included.
        can_crop: Whether `crop` can forget some tokens and keep others.
    """

    can_crop = True

    def __init__(
        self,
        num_layers: int,
        batch: int,
        num_kv_heads: int,
        head_dim: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        shape = (2, batch, num_kv_heads, max_length, head_dim)
        # Zeros rather than unwritten memory: what lies beyond `length` must never be able to be NaN.
        self.buffers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.max_length = max_length
        self.length = 0

    def update(
        self,
        layer: int,
        key: Float[Tensor, "batch kv_head position head_dim"],
        value: Float[Tensor, "batch kv_head position head_dim"],
    ) -> tuple[Float[Tensor, "batch kv_head key head_dim"], Float[Tensor, "batch kv_head key head_dim"]]:
        """Store one layer's new keys and values and return all so far, as views of the buffers.

        Raises:
            UserError: They do not fit.
        """
        end = self.length + key.shape[2]
        self.check_length(end)
        buffer = self.buffers[layer]
        with torch.no_grad():
            buffer[0, :, :, self.length : end] = key
            buffer[1, :, :, self.length : end] = value
        return buffer[0, :, :, :end], buffer[1, :, :, :end]

    def check_length(self, length: int) -> None:
        """Raise `UserError` where `length` tokens do not fit."""
        if length > self.max_length:
            raise UserError(
                f"The key/value cache holds {self.max_length} tokens; {length} were asked for.",
                hint="Make it longer (max_length), or give fewer tokens.",
            )

    def advance(self, count: int) -> None:
        """Count `count` more tokens as held, once every layer has stored them."""
        self.length += count

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        assert 0 <= length <= self.length
        self.length = length

    def gather(self, rows: Int[Tensor, " row"]) -> None:
        """Keep the sequences `rows`, in that order; one may be there several times.

        This is how finished sequences leave a batch, and how beams split. As many rows as before stay in the same
        memory.
        """
        rows = rows.to(self.buffers[0].device)
        if len(rows) == self.buffers[0].shape[1]:
            for buffer in self.buffers:
                held = buffer[:, :, :, : self.length]
                held.copy_(held.index_select(1, rows))
            return
        self.buffers = [buffer.index_select(1, rows) for buffer in self.buffers]

    def reset(self) -> None:
        """Forget all tokens."""
        self.length = 0

    def fits(self, batch_size: int, max_length: int, dtype: torch.dtype, device: torch.device) -> bool:
        """Return whether this cache, once reset, can hold `batch_size` sequences of at least `max_length` tokens."""
        buffer = self.buffers[0]
        alike = buffer.shape[1] == batch_size and buffer.dtype == dtype and buffer.device == device
        return alike and self.max_length >= max_length

    @property
    def num_bytes(self) -> int:
        """Memory of the buffers, in bytes."""
        return sum(buffer.nbytes for buffer in self.buffers)
