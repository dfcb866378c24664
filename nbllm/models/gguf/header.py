"""The header of a GGUF file: metadata and where each tensor lies, every claim checked against the file's length."""

from __future__ import annotations

import dataclasses
import math
import mmap
from pathlib import Path
from typing import Any

from nbllm.core.errors import WeightsError
from nbllm.core.io import open_regular
from nbllm.models.gguf.blocks import BLOCKS, type_name
from nbllm.models.gguf.cursor import Cursor

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32  # bytes
_MAX_DIMS = 4  # GGML_MAX_DIMS
# The fewest bytes of an entry: lengths of its strings, types, counts and, of a value, one byte.
_SMALLEST_ENTRY = 8 + 4 + 1
_SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and how it is stored.

    Attributes:
        name: Its name in the file.
        shape: Its shape in torch's order, rows first; the file has it the other way round.
        type: Its number in `enum ggml_type`, a key of `blocks.BLOCKS`.
        offset: Its first byte, from the beginning of the file.
        nbytes: How many bytes it fills there.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Header:
    """What a GGUF file says before its tensors' bytes.

    Attributes:
        path: The file.
        metadata: Every key with its value: numbers, texts, lists of texts, arrays of numbers.
        tensors: By name, in the file's order. All lie within the file and none overlaps another.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file of version 2 or 3.

    No count, length or shape is believed before it is known to fit into the rest of the file, so nothing is
    allocated that the file only claims to hold.

    Raises:
        WeightsError: It is absent, no GGUF, truncated, contradicts itself or has a type that is not known.

    Source: the GGUF specification, github.com/ggml-org/ggml, docs/gguf.md.
    """
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
            if size < len(MAGIC):  # an empty file cannot be mapped
                raise WeightsError("The file is no GGUF file: it is too short.", where=path)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(Cursor(data, path), path)
    except FileNotFoundError:
        raise WeightsError("There is no such file.", where=path) from None
    except OSError as error:
        raise WeightsError(f"The file cannot be read: {error.strerror}.", where=path) from None


def _parse(cursor: Cursor, path: Path) -> Header:
    if cursor.take(4, "the magic bytes") != MAGIC:
        raise WeightsError("The file is no GGUF file: it does not begin with GGUF.", where=path)
    _check_version(cursor.number("I", "the version"), path)
    num_tensors = cursor.number("Q", "the number of tensors")
    num_entries = cursor.number("Q", "the number of metadata entries")
    cursor.check_room(num_entries * _SMALLEST_ENTRY, f"{num_entries} metadata entries")
    metadata: dict[str, Any] = {}
    for index in range(num_entries):
        key = cursor.text(f"the name of metadata entry {index}")
        if key in metadata:
            raise WeightsError(f"The metadata has {key!r} twice.", where=path)
        metadata[key] = cursor.value(cursor.number("I", key), key)
    parts = metadata.get("split.count", 1)
    if not isinstance(parts, int) or parts not in (0, 1):
        raise WeightsError(
            f"The file is one of {parts} parts of a model.",
            where=path,
            hint="Join them first: llama-gguf-split --merge.",
        )
    cursor.check_room(num_tensors * _SMALLEST_TENSOR, f"{num_tensors} tensors")
    infos = [_tensor(cursor, index) for index in range(num_tensors)]
    alignment = _alignment(metadata, path)
    start = -(-cursor.position // alignment) * alignment
    return Header(path, metadata, _place(infos, start, alignment, cursor.size, path))


def _check_version(version: int, path: Path) -> None:
    if version in _VERSIONS:
        return
    if version >> 24 in _VERSIONS and not version & 0xFFFFFF:
        raise WeightsError("The file is in the byte order of big-endian machines.", where=path)
    raise WeightsError(
        f"The file is of GGUF version {version}.",
        where=path,
        hint="nbllm reads versions 2 and 3; convert it again with a newer llama.cpp.",
    )


def _alignment(metadata: dict[str, Any], path: Path) -> int:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise WeightsError(
            f"general.alignment is {alignment!r}; it must be a power of two, in bytes.", where=path
        )
    return alignment


def _tensor(cursor: Cursor, index: int) -> TensorInfo:
    """Read one tensor's entry; its offset is still that from the beginning of all tensors."""
    name = cursor.text(f"the name of tensor {index}")
    num_dims = cursor.number("I", name)
    if not 1 <= num_dims <= _MAX_DIMS:
        raise WeightsError(f"{name} has {num_dims} dimensions.", where=cursor.path)
    shape = tuple(cursor.number("Q", name) for _ in range(num_dims))[::-1]
    kind = cursor.number("I", name)
    offset = cursor.number("Q", name)
    if kind not in BLOCKS:
        raise WeightsError(
            f"{name} is of type {type_name(kind)}, which nbllm does not read.",
            where=cursor.path,
            hint=f"Known: {', '.join(block.name for block in BLOCKS.values())}.",
        )
    block = BLOCKS[kind]
    if 0 in shape or shape[-1] % block.elements:
        raise WeightsError(
            f"{name} has the shape {list(shape)}; {block.name} packs rows of a multiple of {block.elements}.",
            where=cursor.path,
        )
    return TensorInfo(name, shape, kind, offset, math.prod(shape) // block.elements * block.nbytes)


def _place(
    infos: list[TensorInfo], start: int, alignment: int, size: int, path: Path
) -> dict[str, TensorInfo]:
    """Return the tensors by name, each with its place in the file; refuse what cannot be."""
    end, before = 0, ""
    for info in sorted(infos, key=lambda info: info.offset):
        if info.offset % alignment:
            raise WeightsError(
                f"{info.name} begins at {info.offset}, not at a multiple of {alignment} bytes.", where=path
            )
        if info.offset < end:
            raise WeightsError(f"The bytes of {info.name} overlap those of {before}.", where=path)
        end, before = info.offset + info.nbytes, info.name
        if start + end > size:
            raise WeightsError(
                f"{info.name} would end at byte {start + end:,}; the file has {size:,}.",
                where=path,
                hint="The file is cut off or damaged: fetch it again.",
            )
    placed = {info.name: dataclasses.replace(info, offset=start + info.offset) for info in infos}
    if len(placed) < len(infos):
        raise WeightsError("The file has two tensors of one name.", where=path)
    return placed
