"""Adapters in a checkpoint: settings and parameters as they are, those in training included."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from nbllm.core.errors import UserError, WeightsError
from nbllm.core.io import read_json, write_json
from nbllm.models.peft.adapter import Adapter
from nbllm.models.peft.known import ADAPTERS
from nbllm.models.peft.stack import AdapterStack
from nbllm.models.tensor_shards import ADAPTER, shards_of
from nbllm.models.tensor_writing import write_tensors

SETTINGS_FILE, TENSORS_FILE = "adapters.json", "adapters.safetensors"
_MAX_JSON = 1 << 22  # bytes


def write_adapters(adapters: Sequence[Adapter], folder: Path, *, parameters: bool = True) -> None:
    """Write adapters' settings into a checkpoint, and their parameters unless these lie in parts."""
    records = [
        {
            "name": each.name,
            "method": each.config.name,
            "settings": each.config.to_dict(),
            "trains": each.trains,
        }
        for each in adapters
    ]
    write_json(folder / SETTINGS_FILE, {"adapters": records})
    if not parameters:
        return
    tensors = {
        name: tensor.detach().float().cpu().contiguous()
        for each in adapters
        for name, tensor in each.parameters().items()
    }
    write_tensors(tensors, folder / TENSORS_FILE)


def read_adapters(stack: AdapterStack, folder: Path) -> None:
    """Attach the adapters that `write_adapters` left in a checkpoint, if there are any.

    Raises:
        WeightsError: They are damaged, or belong to another model.
    """
    path = folder / SETTINGS_FILE
    if not path.exists():
        return
    try:
        stored: Any = read_json(path, _MAX_JSON)
        tensors = read_tensors(folder)
        for record in stored["adapters"]:
            config = ADAPTERS[str(record["method"])].from_dict(record["settings"])
            adapter = stack.attach(config, name=str(record["name"]), seed=None)
            own = adapter.parameters().keys()
            adapter.load({name: tensors.pop(name) for name in own if name in tensors}, folder / TENSORS_FILE)
        for adapter, record in zip(stack.adapters, stored["adapters"], strict=True):
            adapter.trains = bool(record["trains"])
        stack.divide_training()
        if tensors:
            raise WeightsError("It has parameters of another adapter.", where=folder / TENSORS_FILE)
    except WeightsError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        raise WeightsError(f"The adapters cannot be read: {error}", where=path) from error


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the parameters of a checkpoint's adapters; none where it has no adapter."""
    path = folder / TENSORS_FILE
    if path.exists():
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    shards = shards_of(folder)
    return {} if shards is None else shards.read_group(ADAPTER)
