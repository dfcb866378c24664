"""The tensors of a model directory, from one safetensors file, from shards or from another framework's checkpoint."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from nbllm.core.base_weights import BaseWeights
from nbllm.core.errors import WeightsError
from nbllm.core.io import open_regular
from nbllm.models.config import ModelConfig
from nbllm.models.families.base import Family
from nbllm.models.foreign.finding import open_foreign
from nbllm.models.foreign.sources import ForeignTensors
from nbllm.models.tensor_file import TensorFile
from nbllm.models.tensor_writing import INDEX

SINGLE = "model.safetensors"
_MAX_INDEX = 1 << 26  # bytes

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class TensorFiles:
    """Reads tensors by their full name; every error names the tensor and the file.

    Args:
        directory: The model directory.
        family: Its family, which knows full names and what may be left unread.
        config: Its configuration.

    Attributes:
        main: The file, the index of the shards, or the folder of another framework's checkpoint.
        names: Every tensor's full name, without those that the family never reads.
    """

    def __init__(self, directory: Path, family: Family, config: ModelConfig) -> None:
        self._stack = contextlib.ExitStack()
        self._opened: dict[Path, TensorFile | ForeignTensors] = {}
        self._stored: dict[str, tuple[Path, str]] = {}
        directory = weights_of(directory)
        try:
            self.main = self._find(directory, family, config)
            if self.main.name != INDEX:
                names = {name: self.main for name in self._open(self.main).entries}
            else:
                names = self._read_index(directory)
            for name, path in names.items():
                full = family.canonical(name)
                if not family.unused.fullmatch(full):
                    self._stored[full] = (path, name)
        except BaseException:
            self._stack.close()
            raise
        self.names = set(self._stored)

    def __enter__(self) -> TensorFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def file_of(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        return self._stored[name][0]

    def num_bytes(self, name: str) -> int:
        """Return how much memory a tensor takes as it is stored, in bytes."""
        path, stored_name = self._stored[name]
        entry = self._open(path).entries[stored_name]
        return entry.end - entry.begin

    def widest_dtype(self) -> torch.dtype:
        """Return the one floating type that holds every stored tensor; float32 when types are mixed."""
        found = {self._dtype(name) for name in sorted(self.names)}
        return found.pop() if len(found) == 1 else torch.float32

    def check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise `WeightsError` where a tensor has another shape."""
        path, stored_name = self._stored[name]
        found = self._open(path).entries[stored_name].shape
        if found != shape:
            raise WeightsError(
                f"{name} has the shape {list(found)}; the configuration asks for {list(shape)}.",
                where=path,
                hint="config.json belongs to another model, or the tensor was changed.",
            )

    def read(self, name: str, shape: tuple[int, ...], out: Tensor | None = None) -> Tensor:
        """Return a tensor, in memory of its own or, where it is stored in that dtype, in `out`'s.

        Args:
            name: Its full name.
            shape: What its shape must be.
            out: Contiguous memory for as many elements.

        Raises:
            WeightsError: It has another shape, is not floating, holds values that are not finite, or cannot
                be read.
        """
        self.check_shape(name, shape)
        path, stored_name = self._stored[name]
        dtype, file = self._dtype(name), self._open(path)
        return file.read(stored_name, dtype, out if out is not None and out.dtype == dtype else None)

    def is_zero(self, name: str) -> bool:
        """Return whether all elements of a tensor are zero; errors as `read`."""
        path, stored_name = self._stored[name]
        return not bool(self.read(name, self._open(path).entries[stored_name].shape).any())

    def _dtype(self, name: str) -> torch.dtype:
        path, stored_name = self._stored[name]
        stored = self._open(path).entries[stored_name].dtype
        if stored not in _DTYPES:
            raise WeightsError(
                f"{name} is stored as {stored}, which is no floating type that nbllm reads.",
                where=path,
                hint=f"Known: {', '.join(_DTYPES)}. A quantized model must be expanded first.",
            )
        return _DTYPES[stored]

    def _find(self, directory: Path, family: Family, config: ModelConfig) -> Path:
        for name in (SINGLE, INDEX):
            if (directory / name).is_file():
                return directory / name
        foreign = open_foreign(directory, family, config)
        if foreign is None:
            raise _none_found(directory)
        self._opened[foreign.path] = foreign
        return foreign.path

    def _open(self, path: Path) -> TensorFile | ForeignTensors:
        if path not in self._opened:
            self._opened[path] = TensorFile(path, self._stack)
        return self._opened[path]

    def _read_index(self, directory: Path) -> dict[str, Path]:
        """Return each tensor's file, checked against what the files hold."""
        try:
            with open_regular(self.main) as index:
                weight_map = json.loads(index.read(_MAX_INDEX))["weight_map"]
            entries = {str(name): str(file) for name, file in weight_map.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise WeightsError(
                "The index of the shards has no readable weight_map.", where=self.main
            ) from None
        if not entries:
            raise WeightsError("The index of the shards names no tensor.", where=self.main)
        for name, file in entries.items():
            if Path(file).name != file:  # an index must not reach outside its own directory
                raise WeightsError(
                    f"{name} is said to be in {file!r}, which is no plain file name.", where=self.main
                )
            if not (directory / file).is_file():
                raise WeightsError(
                    f"The shard {file} is missing; it holds {name}.", where=directory, hint="Fetch it again."
                )
        held = {file: set(self._open(directory / file).entries) for file in sorted(set(entries.values()))}
        for name, file in entries.items():
            if name not in held[file]:
                raise WeightsError(
                    f"{name} is missing from the shard that should hold it.", where=directory / file
                )
        for file, names in held.items():
            for name in sorted(names - entries.keys()):
                raise WeightsError(f"{name} is surplus: the index does not name it.", where=directory / file)
        return {name: directory / file for name, file in entries.items()}


def weights_of(directory: Path) -> Path:
    """Return where a directory's weights are: in a checkpoint of a run that trains an adapter, in the run's base."""
    try:
        base = BaseWeights.referred_to_by(directory)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"The reference to the weights cannot be read: {error}", where=directory
        ) from error
    return directory if base is None else base.folder


def _none_found(directory: Path) -> WeightsError:
    pickled = sorted(file.name for file in directory.glob("*.bin"))
    return WeightsError(
        f"The directory has neither {SINGLE} nor {INDEX}.",
        where=directory,
        hint=(
            f"{pickled[0]} is in the older pickle format: convert it with transformers' save_pretrained."
            if pickled
            else None
        ),
    )
