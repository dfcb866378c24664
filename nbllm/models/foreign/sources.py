"""Tensors under the names of Hugging Face's files, each brought together when it is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nbllm.core.errors import WeightsError
from nbllm.models.tensor_file import DTYPES, Entry

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Source(NamedTuple):
    """A tensor that can be read.

    Attributes:
        dtype: Of its elements.
        shape: Its shape.
        read: Returns its elements, in any shape.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


class ForeignTensors:
    """The tensors of another framework's checkpoint, as `TensorFile` has those of a file.

    Args:
        path: Its folder.
        sources: Its tensors by name.

    Attributes:
        entries: What is known of each before it is read.
    """

    def __init__(self, path: Path, sources: Mapping[str, Source]) -> None:
        self.path, self._sources = path, sources
        self.entries = {
            name: Entry(
                _NAMES.get(source.dtype, str(source.dtype)),
                source.shape,
                0,
                math.prod(source.shape) * source.dtype.itemsize,
            )
            for name, source in sources.items()
        }

    def read(self, name: str, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """Return a tensor, in memory of its own or in `out`'s; arguments as `TensorFile.read`.

        Raises:
            WeightsError: It holds values that are not finite, or its files cannot be read.
        """
        source = self._sources[name]
        tensor = source.read().to(dtype)
        if not (torch.isfinite(tensor.sum()) or torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise WeightsError(
                f"{name} holds {count} values that are not finite.",
                where=self.path,
                hint="The file is damaged, or the model was saved after its training broke down.",
            )
        if out is None:
            return tensor.reshape(source.shape)
        out.view(-1).copy_(tensor.reshape(-1))
        return out.view(source.shape)
