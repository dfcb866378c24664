"""Data sets by hub name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*|\w[\w-]*", re.ASCII)
PATIENCE = 10.0  # seconds until the hub counts as out of reach


def fetch(name: str, subset: str | None, split: str) -> Dataset:
    """Return one split of a hub data set, out of the local cache when the hub cannot be reached.

    Code in the data set's repository is never run.

    Raises:
        DataError: No network, no such data set, no access, or no such subset or split.
    """
    import datasets

    reached, problem = _ask_hub(name)
    cached = Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")
    if not reached and not cached.is_dir():  # asking `datasets` would take five retries, half a minute
        raise _out_of_reach(name, problem)
    try:
        loaded = datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError) as error:
        if not reached:
            raise _out_of_reach(name, problem) from error
        raise DataError(
            f"The data set {name!r} cannot be loaded: {_first_line(error)}",
            where=f"{name}, subset {subset!r}, split {split!r}",
            hint="Check the name, subset= and split= on the data set's page.",
        ) from error
    assert isinstance(loaded, datasets.Dataset)
    return loaded


def _ask_hub(name: str) -> tuple[bool, str]:
    """Ask once whether the data set is there; return whether the hub answered, and else why not."""
    import huggingface_hub
    from huggingface_hub import errors

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False, "HF_HUB_OFFLINE is set"
    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=PATIENCE)
    except errors.GatedRepoError as error:
        raise DataError(
            f"The data set {name!r} asks for its terms to be accepted.",
            where=name,
            hint="Accept them on its page and log in: hf auth login.",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DataError(
            f"There is no data set {name!r} on the hub, or it is private.",
            where=name,
            hint="Check the name; a file or folder is given by its path, './name'.",
        ) from error
    except Exception as error:  # which HTTP client the hub's library uses, and what it raises, changes
        return False, _first_line(error)
    return True, ""


def _out_of_reach(name: str, problem: str) -> DataError:
    return DataError(
        f"There is no file or folder {name!r}, and the hub cannot be asked for it ({problem}).",
        where=name,
        hint="Check the path or the network, or use 'pydocs' or 'pystdlib', which need neither.",
    )


def _first_line(error: Any) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
