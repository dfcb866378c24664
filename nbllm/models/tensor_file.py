"""One safetensors file, read and never mapped: a map would change, or end the process, with the file."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nbllm.core.errors import WeightsError
from nbllm.core.io import open_regular
from nbllm.core.threads import map_in_threads

_LENGTH = 8  # bytes before the header, which say its length
_PIECE = 1 << 21  # bytes


# By the names of safetensors; those that networks and optimizers hold.
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a safetensors file by name, each read when it is looked up, into memory of its own.

    Raises:
        WeightsError: It is no whole safetensors file, or holds values that are not finite.
    """

    def __init__(self, path: Path) -> None:
        self._stack = ExitStack()
        self._file = TensorFile(path, self._stack)

    def __enter__(self) -> StoredTensors:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> Tensor:
        return self._file.read(name, DTYPES[self._file.entries[name].dtype])

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.entries)

    def __len__(self) -> int:
        return len(self._file.entries)


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
        self.path, self._lock = path, threading.Lock()
        try:
            with safe_open(path, framework="np"):  # as "pt" it would reserve memory for the whole file
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

        It is read in pieces, by several threads, and each piece is checked while it is in the processor's cache.

        Args:
            name: Its name.
            dtype: Of its elements.
            out: Contiguous memory of that dtype for as many elements.

        Raises:
            WeightsError: It holds values that are not finite, or the file has become shorter since it was opened, or
                cannot be read.
        """
        entry = self.entries[name]
        tensor = torch.empty(math.prod(entry.shape), dtype=dtype) if out is None else out.view(-1)
        assert tensor.nbytes == entry.end - entry.begin, entry  # the library has checked it
        pieces = tensor.split(_PIECE // tensor.element_size())
        starts = range(entry.begin, entry.end, _PIECE)
        try:
            if len(pieces) > 1:
                are_finite = map_in_threads(self._read_piece, pieces, starts, threads=torch.get_num_threads())
            else:
                are_finite = list(map(self._read_piece, pieces, starts))
        except EOFError:
            raise WeightsError(
                f"The file ended within {name}: it was changed meanwhile.",
                where=self.path,
                hint="Fetch it again.",
            ) from None
        except OSError as error:
            raise WeightsError(f"{name} cannot be read: {error.strerror}.", where=self.path) from None
        if not all(are_finite):
            count = sum(int((~torch.isfinite(piece)).sum()) for piece in pieces)
            raise WeightsError(
                f"{name} holds {count} values that are not finite.",
                where=self.path,
                hint="The file is damaged, or the model was saved after its training broke down.",
            )
        return tensor.view(entry.shape)

    def _read_piece(self, piece: Tensor, start: int) -> bool:
        """Read elements from byte `start` of the file; return whether they are finite."""
        memory = piece.view(torch.uint8).numpy().data
        while len(memory):
            count = self._read_at(memory, start)
            if not count:
                raise EOFError
            memory, start = memory[count:], start + count
        # The sum needs no memory; it is not finite where a number is not, or where it overflows.
        return bool(torch.isfinite(piece.sum())) or bool(torch.isfinite(piece).all())

    def _read_at(self, memory: memoryview, start: int) -> int:
        if hasattr(os, "preadv"):  # any number of threads at once
            return os.preadv(self._file.fileno(), [memory], start)
        with self._lock:
            self._file.seek(start)
            return self._file.readinto(memory)


def _entry(value: dict[str, object], offset: int) -> Entry:
    dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]  # type: ignore[misc]
    return Entry(str(dtype), tuple(shape), offset + begin, offset + end)  # type: ignore[arg-type, has-type]
