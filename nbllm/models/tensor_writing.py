"""Writing tensors to a safetensors file, with the system's errors as what they are."""

from __future__ import annotations

import errno
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from nbllm.core.io import write_json

INDEX = "model.safetensors.index.json"


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors by name into one safetensors file, with the mode that the umask grants.

    Raises:
        OSError: The disk is full, or the file cannot be written.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    try:
        save_file(dict(tensors), path, metadata=None if metadata is None else dict(metadata))
        path.chmod(mode)  # save_file makes what only its owner may read
    except SafetensorError as error:  # it wraps the system's errors: a full disk must stay an OSError
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error


def write_in_files(
    sizes: Mapping[str, int],
    make: Callable[[Sequence[str]], Mapping[str, Tensor]],
    directory: Path,
    max_shard_bytes: int,
) -> None:
    """Write a model directory's weights into one file, or several and their index.

    Args:
        sizes: Bytes of each tensor, by name.
        make: Returns the tensors of these names; those of one file are asked for together.
        directory: The folder.
        max_shard_bytes: Largest size of a file, unless one tensor is larger.

    Raises:
        OSError: The disk is full, or a file cannot be written.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    plan = split_state_dict_into_shards_factory(
        dict(sizes),
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    for file, names in plan.filename_to_tensors.items():
        write_tensors(make(names), directory / file, {"format": "pt"})
    if plan.is_sharded:
        write_json(directory / INDEX, {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename})
