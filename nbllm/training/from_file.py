"""A run described by a TOML file, for the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import UserError, nearest
from nbllm.training.config import TrainConfig

if TYPE_CHECKING:
    from nbllm.lm import LM
    from nbllm.runs.run import Run

SECTIONS = ("data", "tokenizer", "model", "train")


def start_from_file(path: Path, *, name: str | None = None, folder: Path = Path("runs")) -> Run:
    """Prepare what the file says and start it as a process of its own; `nbllm train --help` shows an example.

    Raises:
        UserError: The file cannot be read, is not TOML, or has an unknown section or setting.
    """
    from nbllm.data import load, split
    from nbllm.training.start import train

    sections = _read(path)
    data = sections["data"]
    _known(sections["train"], TrainConfig.names(sections["train"]), "[train]", path)
    _known(data, ("source", "column", "on_error", "validation", "seed"), "[data]", path)
    reading = {key: data[key] for key in ("column", "on_error") if key in data}
    text = load(data.get("source", "pydocs"), **reading)
    held_out = None
    if data.get("validation", 0.1):
        text, held_out = split(text, data.get("validation", 0.1), seed=data.get("seed", 0))
    lm = _model(sections, text, path)
    return train(
        lm, text, validation=held_out, name=name, folder=folder, where="process", **sections["train"]
    )


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"The file cannot be read: {error.strerror}.", where=path) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"The file is not TOML: {error}.", where=path) from error
    _known(content, SECTIONS, "the file", path)
    for name, section in content.items():
        if not isinstance(section, dict):
            raise UserError(f"{name} must be a section: [{name}].", where=path)
    return {name: content.get(name, {}) for name in SECTIONS}


def _known(section: Mapping[str, Any], names: tuple[str, ...], title: str, path: Path) -> None:
    for key in section:
        if key not in names:
            raise UserError(f"{title} has no {key!r}.", where=path, hint=nearest(key, names))


def _model(sections: dict[str, dict[str, Any]], text: Any, path: Path) -> LM:
    from nbllm.data.tokenizer import train_tokenizer
    from nbllm.lm import LM, load

    model, tokenizer = dict(sections["model"]), sections["tokenizer"]
    if "path" in model:
        if len(model) > 1 or tokenizer:
            raise UserError(
                "A model with a path brings its shape and tokenizer along.",
                where=path,
                hint="Name only the path.",
            )
        return load(model["path"])
    _known(tokenizer, ("vocab_size", "path"), "[tokenizer]", path)
    if "path" in tokenizer:
        from transformers import AutoTokenizer

        made = AutoTokenizer.from_pretrained(tokenizer["path"], local_files_only=True)
    else:
        made = train_tokenizer(text, vocab_size=tokenizer.get("vocab_size", 4096))
    return LM.new(model.pop("family", "llama"), tokenizer=made, **model)
