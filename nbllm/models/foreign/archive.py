"""Files of `torch.save`, of which tensors, or ranges of them, are read one at a time."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nbllm.core.errors import UserError, WeightsError
from nbllm.models.foreign.inert import Inert, InertUnpickler

_MAX_PICKLE = 1 << 28  # bytes of what is not tensors
_LOCAL_HEADER = 30  # bytes before the name of a file within a zip


class _Storage(NamedTuple):
    path: Path
    begin: int
    dtype: torch.dtype
    elements: int


class StoredTensor(NamedTuple):
    """A tensor in a file, contiguous.

    Attributes:
        path: The file.
        begin: Its first byte there.
        dtype: Of its elements.
        shape: Its shape.
    """

    path: Path
    begin: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    def read(self, first: int = 0, count: int | None = None) -> Tensor:
        """Return `count` of its elements from the `first` on, None: all to the end, as a vector.

        Raises:
            WeightsError: The file cannot be read, or is shorter now.
        """
        count = self.elements - first if count is None else count
        assert 0 <= first <= first + count <= self.elements, (first, count, self.shape)
        out = torch.empty(count, dtype=self.dtype)
        memory = out.view(torch.uint8).numpy().data
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(self.begin + first * self.dtype.itemsize)
                while len(memory):
                    size = file.readinto(memory)
                    if not size:
                        raise WeightsError("The file has become shorter.", where=self.path)
                    memory = memory[size:]
        except OSError as error:
            raise WeightsError(f"The file cannot be read: {error.strerror}.", where=self.path) from None
        return out


def read_archive(path: Path) -> Any:
    """Return what a file of `torch.save` holds, without running anything: tensors as `StoredTensor`, still in the file.

    Objects of other classes are `Inert`.

    Raises:
        WeightsError: It is no such file or damaged, or it asks to call what no checkpoint needs.

    Source: pytorch.org/docs/stable/notes/serialization.html, "Serialized file format for torch.save".
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            pickled = entries["data.pkl"]
            if pickled.file_size > _MAX_PICKLE:
                raise ValueError(f"{pickled.file_size:,} bytes of objects")
            if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
                raise ValueError("its numbers are big-endian")
            return _Unpickler(io.BytesIO(archive.read(pickled)), path, file, entries).load()
    except UserError as error:
        raise WeightsError(error.what, where=path, hint=error.hint) from None
    except Exception as error:  # whatever a damaged pickle leads to
        raise WeightsError(
            f"The file is no whole file of torch.save: {type(error).__name__}: {error}.",
            where=path,
            hint="Copy it again. Files from before PyTorch 1.6 must be saved anew.",
        ) from None


class _Unpickler(InertUnpickler):
    """Reads tensors as descriptions of where they lie."""

    def __init__(
        self, pickled: io.BytesIO, path: Path, file: io.BufferedReader, entries: dict[str, zipfile.ZipInfo]
    ) -> None:
        super().__init__(pickled)
        self._path, self._file, self._entries = path, file, entries

    def persistent_load(self, pid: Any) -> Any:
        """Return the description of a storage."""
        _, dtype, key, _, count = pid
        if not isinstance(dtype, torch.dtype):
            return Inert()  # of a kind that no weights have
        begin, size = _place(self._file, self._entries[f"data/{key}"])
        if not 0 <= count * dtype.itemsize <= size:
            raise ValueError(f"the storage {key} is shorter than stated")
        return _Storage(self._path, begin, dtype, count)

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a class or function."""
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return _tensor
        if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return _data_of_parameter
        if module == "torch._tensor" and name == "_rebuild_from_type_v2":
            return _tensor_of_subclass
        return super().find_class(module, name)


def _tensor(storage: Any, first: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Any:
    steps, step = [], 1
    for size in reversed(shape):
        steps.append(step)
        step *= size
    dense = all(
        size == 1 or one == other for size, one, other in zip(shape, stride, steps[::-1], strict=True)
    )
    if not isinstance(storage, _Storage) or not (dense or step == 0):
        return Inert()  # transposed, expanded or of another kind: no checkpoint's weights
    if min(first, *shape, 0) < 0 or first + step > storage.elements:
        raise ValueError("a tensor lies beyond its storage")
    begin = storage.begin + first * storage.dtype.itemsize
    return StoredTensor(storage.path, begin, storage.dtype, tuple(shape))


def _data_of_parameter(data: Any, *_: Any) -> Any:
    return data


def _tensor_of_subclass(rebuild: Any, _: Any, arguments: tuple[Any, ...], *__: Any) -> Any:
    return rebuild(*arguments) if rebuild in (_tensor, _data_of_parameter) else Inert()


def _place(file: io.BufferedReader, info: zipfile.ZipInfo) -> tuple[int, int]:
    """Return the first byte of a file that lies within a zip as it is, and how many there are."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError("its tensors are compressed")
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER)
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return info.header_offset + _LOCAL_HEADER + name + extra, info.file_size
