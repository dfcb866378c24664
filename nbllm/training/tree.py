"""Nested state of any loop (dicts, lists, tensors, numbers, texts) as safetensors and JSON; never pickle."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from nbllm.core.errors import RunError, UserError
from nbllm.core.io import read_json, write_json
from nbllm.models.tensor_writing import write_tensors

TENSORS = "loop.safetensors"
STRUCTURE = "loop.json"
MAX_DEPTH = 50
MAX_STRUCTURE = 1 << 30  # bytes
_KEYS = (str, int, float, bool, type(None))


def write_tree(folder: Path, tree: Any) -> None:
    """Write a tree of dicts, lists, tuples, tensors, arrays, numbers, texts, bytes and `None` into a folder.

    Raises:
        UserError: It holds something else; the message says where.
        OSError: The disk is full, or the folder cannot be written.
    """
    packer = _Packer()
    structure = packer.pack(tree, "")
    write_tensors(packer.tensors, folder / TENSORS)
    write_json(folder / STRUCTURE, structure)


def read_tree(folder: Path) -> Any:
    """Return what `write_tree` wrote, tensors on the CPU.

    Raises:
        RunError: It is damaged.
    """
    try:
        structure = read_json(folder / STRUCTURE, MAX_STRUCTURE)
        mapped = load_file(folder / TENSORS)  # copied: what is mapped changes with the file
        return _unpack(structure, {name: tensor.clone() for name, tensor in mapped.items()})
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"The loop's state cannot be read: {error}.", where=folder) from error


class _Packer:
    """Takes the tensors out of a tree and leaves what JSON can hold: a dict with one key says what it stands for."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._storages: set[int] = set()

    def pack(self, value: Any, path: str) -> Any:
        if path.count("/") > MAX_DEPTH:
            raise UserError(f"The state to save is nested too deeply at {path[:80]!r}.")
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": str(value)}
        if isinstance(value, np.generic):
            return self.pack(value.item(), path)
        if isinstance(value, Tensor):
            return {"tensor": self._keep(value, path)}
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            return {"array": self._keep(_as_tensor(value, path), path)}
        if isinstance(value, bytes):
            return {"bytes": base64.b64encode(value).decode()}
        if isinstance(value, (list, tuple)):
            items = [self.pack(item, f"{path}/{number}") for number, item in enumerate(value)]
            return {"tuple": items} if isinstance(value, tuple) else items
        if isinstance(value, dict) and all(_is_key(key) for key in value):
            return {"dict": [[key, self.pack(item, f"{path}/{key}")] for key, item in value.items()]}
        raise UserError(
            f"The state to save holds {type(value).__name__} at {path or 'its top'}, which cannot be stored.",
            hint="Save tensors, arrays, numbers, texts, and dicts and lists of them; never pickled objects.",
        )

    def _keep(self, tensor: Tensor, path: str) -> str:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise UserError(f"The tensor at {path} is neither dense nor plain, and cannot be stored.")
        if tensor.dtype == torch.complex128:  # safetensors has none
            raise UserError(f"The tensor at {path} is complex128, which cannot be stored.")
        kept = tensor.detach().cpu().contiguous()
        storage = kept.untyped_storage().data_ptr()
        if storage in self._storages:
            kept = kept.clone()  # tied weights: the file wants each by itself
        self._storages.add(storage)
        name = f"{len(self.tensors)}{path}"
        self.tensors[name] = kept
        return name


def _is_key(key: Any) -> bool:
    return isinstance(key, _KEYS) and not (isinstance(key, float) and not math.isfinite(key))


def _as_tensor(array: np.ndarray, path: str) -> Tensor:
    try:
        return torch.from_numpy(array.copy())  # of its shape, with steps forward alone, and torch's to write
    except (TypeError, ValueError) as error:  # of a type, or an order of bytes, that torch has not
        raise UserError(f"The array of {array.dtype} at {path} cannot be stored.") from error


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "float":
        return float(content)
    if kind == "bytes":
        return base64.b64decode(content)
    if kind == "tuple":
        return tuple(_unpack(item, tensors) for item in content)
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in content}
    raise ValueError(f"{kind!r} is unknown")
