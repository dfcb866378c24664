"""Memory that one generation leaves for the next: the cache, and the buffers that a model runner computes in."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nbllm.models.network import GenerativeNetwork, Network
    from nbllm.nn.cache import Cache


class Workspace:
    """The memory of one generation at a time; the model's weights are not in it."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._cache: Cache | None = None
        self._num_virtual_tokens = 0  # that the cache was made for

    @property
    def num_bytes(self) -> int:
        """Memory held, in bytes."""
        cache = 0 if self._cache is None else self._cache.num_bytes
        return cache + sum(buffer.nbytes for buffer in self._buffers.values())

    def cache(self, model: GenerativeNetwork, batch_size: int, max_length: int) -> Cache:
        """Return an empty cache of `batch_size` sequences of at least `max_length` tokens: the last one, if it fits."""
        weight = next(model.parameters())
        is_others = self._num_virtual_tokens != model.num_virtual_tokens  # an adapter was switched
        if (
            self._cache is None
            or is_others
            or not self._cache.fits(batch_size, max_length, weight.dtype, weight.device)
        ):
            self.drop_cache()  # first, so that there are never two
            self._cache = model.make_cache(batch_size, max_length)
            self._num_virtual_tokens = model.num_virtual_tokens
        self._cache.reset()
        return self._cache

    def drop_cache(self) -> None:
        """Free the cache."""
        self._cache = None

    def buffer(self, name: str, *shape: int) -> Tensor:
        """Return float32 memory on the CPU with any contents; the same memory for the same name."""
        size, buffer = math.prod(shape), self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            self._buffers[name] = buffer = torch.empty(size, dtype=torch.float32, device="cpu")
        return buffer[:size].view(shape)


_kept: weakref.WeakKeyDictionary[Network, Workspace] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def workspace_of(model: GenerativeNetwork) -> Iterator[Workspace]:
    """Lend a model's workspace; a second generation at the same time gets one of its own."""
    workspace = _kept.pop(model, None) or Workspace()
    try:
        yield workspace
    except BaseException:
        workspace.drop_cache()  # it may hold what is not finite
        raise
    finally:
        _kept[model] = workspace


def held_bytes(model: Network) -> int:
    """Return how much memory is kept for the model's next generation, in bytes."""
    workspace = _kept.get(model)
    return 0 if workspace is None else workspace.num_bytes


def release(model: Network) -> int:
    """Free what is kept for the model's next generation; return how many bytes."""
    workspace = _kept.pop(model, None)
    return 0 if workspace is None else workspace.num_bytes
