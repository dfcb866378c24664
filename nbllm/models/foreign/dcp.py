"""Checkpoints of torch.distributed.checkpoint: `.metadata` and `*.distcp`, of which no pickle is run.

Source: pytorch.org/docs/stable/distributed.checkpoint.html.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nbllm.core.errors import UserError, WeightsError
from nbllm.core.io import read_regular
from nbllm.models.foreign.inert import InertUnpickler, fields

METADATA = ".metadata"
_MAX_METADATA = 1 << 30  # bytes


class _Chunk(NamedTuple):
    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    begin: int
    length: int


class DcpTensors:
    """Reads tensors, or boxes of them, that several processes wrote parts of.

    Args:
        folder: The folder of the files.

    Attributes:
        shapes: Of each whole tensor, by name.
        dtypes: Of their elements.

    Raises:
        WeightsError: `.metadata` is absent, damaged or hostile.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / METADATA
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._chunks: dict[str, list[_Chunk]] = {}
        try:
            metadata = fields(InertUnpickler(io.BytesIO(read_regular(path, _MAX_METADATA))).load())
            places = _places(metadata["storage_data"])
            for name, entry in metadata["state_dict_metadata"].items():
                if entry.state:  # what is no tensor has none
                    self._add(name, fields(entry), places)
        except UserError as error:
            raise WeightsError(error.what, where=path, hint=error.hint) from None
        except Exception as error:  # whatever a damaged pickle leads to
            raise WeightsError(
                f"{METADATA} cannot be read: {type(error).__name__}: {error}.", where=folder
            ) from None

    def _add(self, name: str, entry: dict[str, Any], places: dict[Any, tuple[str, int, int]]) -> None:
        if "chunks" not in entry:
            return
        shape, dtype = entry["size"], entry["properties"].state[0]
        if (
            not isinstance(dtype, torch.dtype)
            or not shape
            or not all(isinstance(size, int) for size in shape)
        ):
            return  # a counter, or of a kind that no weights have
        self.shapes[name], self.dtypes[name] = shape, dtype
        boxes = [(each["offsets"], each["sizes"]) for each in map(fields, entry["chunks"])]
        self._chunks[name] = [
            _Chunk(offsets, sizes, *places[name, offsets]) for offsets, sizes in boxes if math.prod(sizes)
        ]

    def read(self, name: str, row: int | None = None) -> Tensor:
        """Return a whole tensor, or one row of its first dimension.

        Raises:
            WeightsError: Part of it is missing, or a file cannot be read.
        """
        shape = self.shapes[name]
        begin = [0] * len(shape)
        if row is not None:
            begin[0], shape = row, (1, *shape[1:])
        out = torch.empty(shape, dtype=self.dtypes[name])
        filled = 0
        for chunk in self._chunks[name]:
            low = [max(one, other) for one, other in zip(begin, chunk.offsets, strict=True)]
            high = [
                min(one + size, other + length)
                for one, size, other, length in zip(begin, shape, chunk.offsets, chunk.shape, strict=True)
            ]
            if any(one >= other for one, other in zip(low, high, strict=True)):
                continue
            part = self._read(name, chunk)[_box(low, high, chunk.offsets)]
            out[_box(low, high, begin)] = part
            filled += part.numel()
        if filled != out.numel():
            raise WeightsError(f"Part of {name} is missing, or is there twice.", where=self.folder)
        return out if row is None else out[0]

    def _read(self, name: str, chunk: _Chunk) -> Tensor:
        path = self.folder / chunk.file
        try:
            with open(path, "rb") as file:
                file.seek(chunk.begin)
                tensor = torch.load(
                    io.BytesIO(file.read(chunk.length)), map_location="cpu", weights_only=True
                )
            if not isinstance(tensor, Tensor) or tuple(tensor.shape) != chunk.shape:
                raise ValueError(f"it is no tensor of shape {list(chunk.shape)}")
        except FileNotFoundError:
            raise WeightsError(
                f"{chunk.file} is missing; it holds part of {name}.",
                where=self.folder,
                hint="Copy all the files.",
            ) from None
        except Exception as error:  # whatever a damaged file leads to
            raise WeightsError(f"Part of {name} cannot be read: {error}", where=path) from None
        return tensor


def _places(storage: Any) -> dict[Any, tuple[str, int, int]]:
    """Return file, first byte and length of each part, by the tensor's name and where the part begins in it."""
    places = {}
    for index, place in storage.items():
        key, value = fields(index), fields(place)
        name = value["relative_path"]
        if Path(name).name != name:  # the metadata must not reach outside its own folder
            raise WeightsError(f"{key['fqn']} is said to be in {name!r}, which is no plain file name.")
        if value.get("transform_descriptors"):
            raise WeightsError(f"{name} is compressed or otherwise transformed, which is not implemented.")
        places[key["fqn"], key.get("offset")] = (name, value["offset"], value["length"])
    return places


def _box(low: Sequence[int], high: Sequence[int], begin: Sequence[int]) -> tuple[slice, ...]:
    return tuple(
        slice(one - first, other - first) for one, other, first in zip(low, high, begin, strict=True)
    )
