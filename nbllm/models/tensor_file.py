"""One safetensors file, read and never mapped: a map would change, or end the process, with the file."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nbllm.core.errors import WeightsError
from nbllm.core.io import open_regular

_LENGTH = 8  # bytes before the header, which say its length


class Entry(NamedTuple):
    """What the header says of a tensor.

    Attributes:
        dtype: As safetensors names it: "BF16".
        shape: Its shape.
        begin: Its first byte, from the beginning of the file.
        end: The byte after its last.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFile:
    """A safetensors file whose header was checked against its length by the safetensors library.

    Args:
        path: The file.
        stack: Closes the file.

    Attributes:
        entries: Its tensors by name.

    Raises:
        WeightsError: It is no whole safetensors file.

    Source: github.com/huggingface/safetensors, README, "Format".
    """

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        try:
            with safe_open(path, framework="pt"):
                pass
            self._file = stack.enter_context(open_regular(path))
            length = int.from_bytes(self._file.read(_LENGTH), "little")
            header = json.loads(self._file.read(length))
            header.pop("__metadata__", None)
            self.entries = {name: _entry(value, _LENGTH + length) for name, value in header.items()}
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise WeightsError(
                f"The file is no whole safetensors file: {error}", where=path, hint="Fetch or save it again."
            ) from None

    def read(self, name: str, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """Return a tensor, in memory of its own or in `out`'s.

        Args:
            name: Its name.
            dtype: Of its elements.
            out: Contiguous memory of that dtype for as many elements.

        Raises:
            WeightsError: The file has become shorter since it was opened, or cannot be read.
        """
        entry = self.entries[name]
        tensor = torch.empty(math.prod(entry.shape), dtype=dtype) if out is None else out.view(-1)
        assert tensor.nbytes == entry.end - entry.begin, entry  # the library has checked it
        memory = tensor.view(torch.uint8).numpy().data
        try:
            self._file.seek(entry.begin)
            count = self._file.readinto(memory)
        except OSError as error:
            raise WeightsError(f"{name} cannot be read: {error.strerror}.", where=self.path) from None
        if count < tensor.nbytes:
            raise WeightsError(
                f"The file ended within {name}: it was changed meanwhile.",
                where=self.path,
                hint="Fetch it again.",
            )
        return tensor.view(entry.shape)


def _entry(value: dict[str, object], offset: int) -> Entry:
    dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]  # type: ignore[misc]
    return Entry(str(dtype), tuple(shape), offset + begin, offset + end)  # type: ignore[arg-type, has-type]
