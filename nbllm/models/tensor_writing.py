"""Writing tensors to a safetensors file, with the system's errors as what they are."""

from __future__ import annotations

import errno
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


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
