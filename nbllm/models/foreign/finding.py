"""Which framework a checkpoint is of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nbllm.core.errors import WeightsError
from nbllm.models.config import ModelConfig
from nbllm.models.families.base import Family
from nbllm.models.foreign import deepspeed, megatron
from nbllm.models.foreign.megatron_config import config_of_arguments
from nbllm.models.foreign.sources import ForeignTensors


def open_foreign(directory: Path, family: Family, config: ModelConfig) -> ForeignTensors | None:
    """Return the weights of a directory with a checkpoint of DeepSpeed or Megatron-LM; None where it has none.

    Args:
        directory: The folder of one step, or that of the run, of which it is the newest step.
        family: The model's family, whose names the weights have.
        config: The model's configuration.

    Raises:
        WeightsError: It cannot be read; the message says why.
    """
    if (folder := deepspeed.folder_of(directory)) is not None:
        return ForeignTensors(folder, deepspeed.read_deepspeed(folder))
    if (folder := megatron.folder_of(directory)) is not None:
        return ForeignTensors(folder, megatron.read_megatron(folder, family, config))
    return None


def foreign_config(directory: Path) -> dict[str, Any] | None:
    """Return the values of a `config.json` that a checkpoint itself says; None where the directory has no checkpoint.

    Raises:
        WeightsError: The checkpoint does not say them.
    """
    if (folder := megatron.folder_of(directory)) is not None:
        return config_of_arguments(megatron.arguments_of(folder), folder)
    if deepspeed.folder_of(directory) is not None:
        raise WeightsError(
            "DeepSpeed's checkpoints do not say what the model is.",
            where=directory,
            hint="Copy config.json and the tokenizer's files of the model that was trained into this folder.",
        )
    return None
