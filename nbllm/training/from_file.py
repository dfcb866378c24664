"""A run described by a TOML file, for the command line."""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import UserError, nearest
from nbllm.training.arguments import instead_of, our_names
from nbllm.training.config import TrainConfig

if TYPE_CHECKING:
    from datasets import Dataset

    from nbllm.lm import LM
    from nbllm.runs.run import Run

SECTIONS = ("data", "tokenizer", "model", "train")
_SETTING = re.compile(r"\b([a-z_]+)=('[^']*'|[\w.]+)")  # as messages name one, in Python


def start_from_file(
    path: Path, *, name: str | None = None, folder: Path = Path("runs"), replace: bool = False
) -> Run:
    """Prepare what the file says and start it as a process of its own; `nbllm train --help` shows an example.

    Raises:
        UserError: The file cannot be read, is not TOML, or has an unknown section or setting.
    """
    from nbllm.training.start import train

    sections = _read(path)
    data = sections["data"]
    _check_train(sections["train"], path)
    _known(data, ("source", *_load_settings(), "validation", "seed"), "[data]", path)
    try:
        text, held_out = _text(data)
        lm = _model(sections, text, path)
        return train(
            lm,
            text,
            validation=held_out,
            name=name,
            folder=folder,
            replace=replace,
            where="process",
            **sections["train"],
        )
    except UserError as error:
        raise _in_toml(error, sections) from error


def _train_names(section: Mapping[str, Any]) -> tuple[str, ...]:
    return (*TrainConfig.names(section), "epochs")


def _check_train(section: Mapping[str, Any], path: Path) -> None:
    given = our_names(section)
    names = _train_names(given)
    for key in given:
        if key not in names:
            raise UserError(f"[train] has no {key!r}.", where=path, hint=instead_of(key, names))


def _load_settings() -> tuple[str, ...]:
    """Return the names of the settings of `nbllm.data.load`."""
    from nbllm.data import load

    return tuple(name for name in inspect.signature(load).parameters if name != "source")


def _text(data: dict[str, Any]) -> tuple[Dataset, Dataset | None]:
    """Return training and held-out text as [data] says."""
    from nbllm.data import load, split

    source = data.get("source", "pydocs")
    if not isinstance(source, str) and not (
        isinstance(source, list) and source and all(isinstance(name, str) for name in source)
    ):
        raise UserError(f"source must be a name or a list of names, not {source!r}.", where="[data]")
    text = load(source, **{key: data[key] for key in _load_settings() if key in data})
    validation = data.get("validation", 0.1)
    if not isinstance(validation, str):
        return split(text, validation, seed=data.get("seed", 0)) if validation else (text, None)
    return text, load(
        validation, **{key: data[key] for key in _load_settings() if key in data and key != "split"}
    )


def _in_toml(error: UserError, sections: Mapping[str, Mapping[str, Any]]) -> UserError:
    """Return the error with settings as the file writes them: sample_by = "line" for sample_by='line'."""
    homes = {name: "[data]" for name in _load_settings()}
    homes |= {name: "[train]" for name in _train_names(sections["train"])}
    homes |= {"vocab_size": "[tokenizer]", "kind": "[tokenizer]"}

    def written(match: re.Match[str]) -> str:
        name, value = match[1], match[2]
        if name not in homes:
            return match[0]
        return f"{name} = {value.replace(chr(39), chr(34))} in {homes[name]}"

    def rewritten(text: str) -> str:
        return _SETTING.sub(written, text)

    hint = None if error.hint is None else rewritten(error.hint)
    return type(error)(rewritten(error.what), where=error.where, hint=hint)


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
    from nbllm.lm import LM, load, load_tokenizer

    model, tokenizer = dict(sections["model"]), sections["tokenizer"]
    if "path" in model:
        if len(model) > 1 or tokenizer:
            raise UserError(
                "A model with a path brings its shape and tokenizer along.",
                where=path,
                hint="Name only the path.",
            )
        return load(model["path"])
    _known(tokenizer, ("vocab_size", "kind", "path"), "[tokenizer]", path)
    if "path" in tokenizer:
        if len(tokenizer) > 1 or not isinstance(tokenizer["path"], str):
            raise UserError("A tokenizer with a path has nothing else.", where=path, hint='path = "my-model"')
        made = load_tokenizer(Path(tokenizer["path"]).expanduser())
    else:
        made = train_tokenizer(text, **tokenizer)
    return LM.new(model.pop("family", "llama"), tokenizer=made, **model)
