"""Adapters in peft's files: `adapter_config.json` and `adapter_model.safetensors`, both ways.

Source: github.com/huggingface/peft, docs "Checkpoint format".
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from nbllm.core.errors import UserError, WeightsError, listed
from nbllm.core.io import atomic_directory, atomic_files, read_json, write_json
from nbllm.models.network import Network
from nbllm.models.peft import ia3_files, lora_files, prompt_files
from nbllm.models.peft.adapter import Adapter
from nbllm.models.peft.peft_format import CONFIG, PREFIX, TENSORS, PeftFormat
from nbllm.models.peft.stack import AdapterStack
from nbllm.models.peft.vocabulary_files import read_vocabulary, vocabulary_tensors
from nbllm.models.tensor_file import TensorFile
from nbllm.models.tensor_writing import write_tensors
from nbllm.nn.compiled import plain_name

FORMATS: tuple[PeftFormat, ...] = (lora_files.FORMAT, ia3_files.FORMAT, *prompt_files.FORMATS)
_MAX_JSON = 1 << 22  # bytes
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


def read_peft(stack: AdapterStack, folder: Path, *, name: str | None = None) -> Adapter:
    """Attach the adapter in a folder of peft's layout.

    Args:
        stack: The adapters of the model.
        folder: The folder.
        name: As for `AdapterStack.attach`.

    Raises:
        WeightsError: There is none, it is damaged, is of another kind, or a tensor of it belongs to no layer.
    """
    assert isinstance(stack.model, Network)
    config, form = _read_config(folder)
    with ExitStack() as files:
        if not (folder / TENSORS).is_file():
            raise WeightsError(f"The folder has no {TENSORS}.", where=folder)
        file = TensorFile(folder / TENSORS, files)
        tensors = {
            plain_name(each).removeprefix(PREFIX): file.read(each, _dtype(entry.dtype, file))
            for each, entry in file.entries.items()
        }
    try:
        stack.guard()
        read_vocabulary(stack.model, tensors, folder / TENSORS)
        method, values = form.read(stack.model, config, tensors, folder / TENSORS)
    except WeightsError:
        raise
    except (UserError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise WeightsError(f"The adapter cannot be read: {error}", where=folder) from error
    if tensors:
        raise WeightsError(
            f"The adapter does not belong to this model: it has {listed(sorted(tensors)[:4])}.",
            where=folder / TENSORS,
            hint="Open the model that it was trained on.",
        )
    adapter = stack.attach(method, name=name, seed=None)
    try:
        adapter.load({adapter.full_name(key): value for key, value in values.items()}, folder / TENSORS)
    except WeightsError:
        adapter.detach()
        raise
    return adapter


def write_peft(
    model: Network, adapter: Adapter, path: Path, *, base: str, with_vocabulary: bool = False
) -> None:
    """Write an adapter as peft does.

    Args:
        model: The network that it is on.
        adapter: The adapter.
        path: A folder that does not exist, or holds an older adapter.
        base: What the model is called.
        with_vocabulary: Whether the file holds embedding and head too, since they have more rows than the base's.

    Raises:
        UserError: peft has no such method, the folder holds something else, or the family has no tensor for a layer.
        OSError: The disk is full or the path cannot be written.
    """
    form = next((each for each in FORMATS if adapter.config.name in each.methods), None)
    if form is None:
        known = sorted({name for each in FORMATS for name in each.methods})
        raise UserError(
            f"peft has no {adapter.config.label}, so that there is no file for it.",
            hint=f"A checkpoint of a run holds it. Files are for: {listed(known, quote=False)}.",
        )
    config, tensors = form.write(model, adapter)
    if with_vocabulary:
        tensors |= vocabulary_tensors(model)
    path = path.resolve()
    if path.exists():
        if not path.is_dir() or (any(path.iterdir()) and not (path / CONFIG).is_file()):
            raise UserError(
                "There is something else of this name.", where=path, hint="Save under another name."
            )
        target = atomic_files(path, lambda folder: [])
    else:
        target = atomic_directory(path)
    full = {"base_model_name_or_path": base or None, "inference_mode": True, **config}
    with target as folder:
        write_json(folder / CONFIG, full)
        named = {f"{form.prefix}{name}": tensor.contiguous() for name, tensor in tensors.items()}
        write_tensors(named, folder / TENSORS, {"format": "pt"})


def _read_config(folder: Path) -> tuple[dict[str, Any], PeftFormat]:
    path = folder / CONFIG
    try:
        config = read_json(path, _MAX_JSON)
    except FileNotFoundError:
        raise WeightsError(f"The folder has no {CONFIG}: it holds no adapter.", where=folder) from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{CONFIG} cannot be read: {error}.", where=path) from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    for form in FORMATS:
        if form.peft_type == kind:
            return config, form
    known = listed([form.peft_type for form in FORMATS], quote=False)
    raise WeightsError(f"The adapter is of the kind {kind!r}; known are {known}.", where=path)


def _dtype(name: str, file: TensorFile) -> torch.dtype:
    if name not in _DTYPES:
        raise WeightsError(f"A tensor is of the dtype {name}.", where=file.path)
    return _DTYPES[name]


__all__ = ["CONFIG", "FORMATS", "TENSORS", "read_peft", "write_peft"]
