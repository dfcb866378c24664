"""Saving over a model that is already there: which files are the model's own, and that no others are touched."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nbllm.core.errors import UserError
from nbllm.core.io import atomic_directory, atomic_files, read_json
from nbllm.models.quantized import NF4_FILE
from nbllm.models.tensor_files import SINGLE
from nbllm.models.tensor_writing import INDEX

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
# Files of a tokenizer that transformers reads wherever they are, so that those of an older one would change a newer.
_READ_IF_PRESENT = ("added_tokens.json", "special_tokens_map.json", "chat_template.jinja")
_TEMPLATES = "additional_chat_templates"
_MAX_JSON = 64 << 20  # bytes


@contextlib.contextmanager
def replacing_model(directory: Path) -> Iterator[Path]:
    """Yield a folder to fill with a model's files; on success they take the places of an older model's in `directory`.

    A folder that does not exist is made; a link is written through. Only the model's own files are replaced: those of
    the same names, and the older weights and tokenizer files that would contradict them.

    Raises:
        UserError: A file that would be replaced is not a model's.
        OSError: The disk is full or the folder cannot be written, or somebody else has just made it; `directory` is as
            it was.
    """
    directory = directory.resolve()
    if not directory.exists():
        with atomic_directory(directory) as folder:
            yield folder
        return
    _check(directory)
    with atomic_files(directory, lambda folder: _stale(directory, folder)) as folder:
        yield folder


def _check(directory: Path) -> None:
    """Refuse to write into what is not a folder, and to replace files that are not a model's."""
    if not directory.is_dir():
        raise UserError("There is a file of this name.", where=directory, hint="Save under another name.")
    if (directory / "manifest.json").is_file() and (directory / "state.json").is_file():
        raise UserError(
            "The folder is a run's checkpoint.", where=directory, hint="Save into another folder."
        )
    config = directory / CONFIG
    if config.exists():
        if not isinstance(_read_json(config).get("model_type"), str):
            raise _foreign(config)
        return
    of_tokenizer = (
        () if (directory / TOKENIZER_CONFIG).is_file() else (TOKENIZER, *_READ_IF_PRESENT, _TEMPLATES)
    )
    for name in ("generation_config.json", SINGLE, INDEX, *of_tokenizer):
        if (directory / name).exists():
            raise _foreign(directory / name)


def _foreign(file: Path) -> UserError:
    return UserError(
        f"The folder has a {file.name} that is not a model's; saving would replace it.",
        where=file.parent,
        hint="Save into another folder, or move the file away.",
    )


def _stale(directory: Path, new: Path) -> Iterator[Path]:
    """Yield the files of an older model that would contradict the new one's."""
    if (directory / INDEX).is_file():
        shards = _read_json(directory / INDEX).get("weight_map", {})
        for name in set(map(str, shards.values() if isinstance(shards, dict) else ())):
            plain = Path(name).name == name and name.endswith(".safetensors")
            if plain and not (new / name).exists():
                yield directory / name
    for name in (SINGLE, INDEX, NF4_FILE, *_READ_IF_PRESENT):
        if not (new / name).exists():
            yield directory / name
    for template in (directory / _TEMPLATES).glob("*.jinja"):
        if not (new / _TEMPLATES / template.name).exists():
            yield template


def _read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object; nothing where it holds none."""
    with contextlib.suppress(OSError, ValueError):
        value = read_json(path, _MAX_JSON)
        if isinstance(value, dict):
            return value
    return {}
