"""Tensors of which several processes each wrote a part: safetensors files, as torch.distributed.checkpoint lays them.

Each file says in its header where in the whole tensor each of its parts begins, so that any box of a tensor is read
from the files that hold some of it, whatever number of processes wrote them. torch.distributed.checkpoint's own
`.metadata` is a pickle, which would run what it says; no such file is written or read here.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from nbllm.core.errors import WeightsError
from nbllm.core.io import read_json, write_json
from nbllm.models.tensor_writing import write_tensors

FOLDER = "shards"  # in a checkpoint
CONFIG = "config.json"  # beside the parts of a model's own weights: all of its configuration
# What the names of tensors begin with; adapters' parameters are not among the model's own.
MODEL, ADAPTER, OPTIMIZER, OBJECTIVE = "model.", "adapter.", "optimizer.", "objective."
_INDEX = "index.json"
_MAX_INDEX = 1 << 28  # bytes
_OFFSETS = "saved_offsets"
_AT_ONCE = 1 << 28  # bytes that `read_all` holds


def is_sharded(directory: Path) -> bool:
    """Return whether a checkpoint's model lies in parts; of one that trains an adapter alone, the model does not."""
    return (directory / FOLDER / CONFIG).is_file()


def shards_of(directory: Path) -> TensorShards | None:
    """Return the tensors of a checkpoint that lie in parts, None where none do; errors as `TensorShards`."""
    return TensorShards(directory / FOLDER) if (directory / FOLDER).is_dir() else None


def write_parts(parts: Mapping[str, tuple[tuple[int, ...], Tensor]], path: Path) -> None:
    """Write a process's parts of tensors into one file.

    Args:
        parts: By the tensor's name, where its part begins in each dimension, and the part: on the CPU, contiguous.
        path: The file.

    Raises:
        OSError: The disk is full, or the file cannot be written.
    """
    where = {name: {_OFFSETS: list(offsets)} for name, (offsets, _) in parts.items()}
    said = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(where)}
    write_tensors({name: part for name, (_, part) in parts.items()}, path, said)


def write_index(shapes: Mapping[str, Iterable[int]], folder: Path) -> None:
    """Write the shapes of all tensors beside their parts, so that a missing file is noticed.

    Raises:
        OSError: The disk is full, or the file cannot be written.
    """
    write_json(folder / _INDEX, {name: list(shape) for name, shape in shapes.items()})


class TensorShards:
    """Reads tensors, whole or the parts that a process holds, from the files that `write_parts` wrote.

    A folder with ordinary safetensors files and no index is read too: each of their tensors is whole.

    Args:
        folder: The folder of the files.

    Attributes:
        shapes: The shape of each whole tensor, by name.

    Raises:
        WeightsError: A file cannot be read, or part of a tensor is missing.
    """

    def __init__(self, folder: Path) -> None:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        self.folder = folder
        self._reader = HuggingFaceStorageReader(str(folder))
        try:
            self._metadata = self._reader.read_metadata()
            self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)
            index = folder / _INDEX
            expected: dict[str, list[int]] = dict(read_json(index, _MAX_INDEX) if index.exists() else {})
        except Exception as error:  # whatever a damaged header leads to
            raise WeightsError(f"The tensors cannot be read: {error}.", where=folder) from error
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        found = self._metadata.state_dict_metadata
        for name in expected or found:
            if (tensor := found.get(name)) is None:
                raise WeightsError(f"{name} is missing.", where=folder)
            assert isinstance(tensor, TensorStorageMetadata)
            held = sum(math.prod(chunk.sizes) for chunk in tensor.chunks)
            size = list(tensor.size)
            # A file may be missing: what it held would be left as it is.
            if size != expected.get(name, size) or held != math.prod(size):
                raise WeightsError(f"Part of {name} is missing, or is there twice.", where=folder)
            self.shapes[name], self._dtypes[name] = tuple(size), tensor.properties.dtype

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Read tensors by name into memory that is there: of a DTensor, this process's part alone is read.

        Raises:
            WeightsError: One is missing, or has another shape.
        """
        from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

        for name, tensor in tensors.items():
            if name not in self.shapes:
                raise WeightsError(f"{name} is missing.", where=self.folder)
            if tuple(tensor.shape) != self.shapes[name]:
                found, expected = list(self.shapes[name]), list(tensor.shape)
                raise WeightsError(f"{name} has the shape {found}, not {expected}.", where=self.folder)
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        planner.set_up_planner(dict(tensors), self._metadata, is_coordinator=True)
        plan = self._reader.prepare_local_plan(planner.create_local_plan())
        try:
            self._reader.read_data(plan, planner).wait()
        except Exception as error:
            raise WeightsError(f"The tensors cannot be read: {error}.", where=self.folder) from error

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return whole tensors by name; errors as `fill`."""
        tensors = {name: self.empty(name) for name in names}
        self.fill(tensors)
        return tensors

    def read_all(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield whole tensors one after the other, a few of them in memory at a time; errors as `fill`."""
        size = 0

        def group(name: str) -> int:
            nonlocal size
            size += self.num_bytes(name)
            return size // _AT_ONCE

        for _, several in itertools.groupby(names, key=group):
            yield from self.read(several).items()

    def names(self, prefix: str) -> list[str]:
        """Return the names that begin with `prefix`, without it."""
        return [name.removeprefix(prefix) for name in self.shapes if name.startswith(prefix)]

    def read_group(self, prefix: str) -> dict[str, Tensor]:
        """Return the whole tensors whose names begin with `prefix`, by what follows; errors as `fill`."""
        tensors = self.read(prefix + name for name in self.names(prefix))
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}

    def num_bytes(self, name: str) -> int:
        """Return how much memory a whole tensor takes, in bytes."""
        return math.prod(self.shapes[name]) * self._dtypes[name].itemsize

    def empty(self, name: str, device: str = "cpu") -> Tensor:
        """Return a whole tensor that holds nothing yet; errors as `fill`."""
        if name not in self.shapes:
            raise WeightsError(f"{name} is missing.", where=self.folder)
        return torch.empty(self.shapes[name], dtype=self._dtypes[name], device=device)
