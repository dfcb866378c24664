"""A checkpoint whose tensors lie in parts, written as a Hugging Face directory: file by file, never whole in memory."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from nbllm.core.io import read_json, write_json
from nbllm.models.families.known import FAMILIES
from nbllm.models.loading import CONFIG, open_shards
from nbllm.models.tensor_shards import MODEL
from nbllm.models.tensor_writing import write_in_files

FILE_BYTES = 1 << 30  # of weights that are in memory at a time
_OF_THE_RUN = ("manifest.json", "state.json", "objective.safetensors")
_MAX_JSON = 64 << 20  # bytes


def write_exported(checkpoint: Path, folder: Path) -> None:
    """Write a checkpoint's model into an existing folder, in float32, as transformers reads it.

    Args:
        checkpoint: One whose tensors lie in parts.
        folder: To be filled.

    Raises:
        WeightsError: The checkpoint is damaged.
        OSError: The disk is full or the folder cannot be written.
    """
    shards, model = open_shards(checkpoint)
    rules = {rule.source: rule for rule in FAMILIES[model.config.family].rules(model.config)}
    parameters = dict(model.named_parameters())

    def make(names: Sequence[str]) -> dict[str, Tensor]:
        tensors = shards.read(f"{MODEL}{target}" for name in names for target in rules[name].targets)
        return {
            name: rules[name].join([tensors[f"{MODEL}{target}"].float() for target in rules[name].targets])
            for name in names
        }

    for file in checkpoint.iterdir():
        if file.is_file() and file.name not in _OF_THE_RUN:
            shutil.copyfile(file, folder / file.name)
    config: dict[str, Any] = read_json(folder / CONFIG, _MAX_JSON)
    write_json(folder / CONFIG, {**config, "dtype": "float32"})
    sizes = {name: 4 * sum(parameters[t].numel() for t in rule.targets) for name, rule in rules.items()}
    write_in_files(sizes, make, folder, FILE_BYTES)
