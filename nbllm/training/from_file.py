"""A run described by a TOML file, for the command line."""

from __future__ import annotations

import dataclasses
import inspect
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import UserError, nearest
from nbllm.core.io import expand_user, open_regular
from nbllm.distributed.plan import Plan
from nbllm.training.arguments import instead_of, our_names
from nbllm.training.config import TrainConfig

if TYPE_CHECKING:
    from datasets import Dataset

    from nbllm.distributed.launch import Launch
    from nbllm.lm import LM
    from nbllm.runs.run import Run

SECTIONS = ("data", "tokenizer", "model", "train", "plan")
MAX_BYTES = 1 << 20  # of the file
_SETTING = re.compile(r"\b([a-z_]+)=('[^']*'|[\w.]+)")  # as messages name one, in Python


def start_from_file(
    path: Path,
    *,
    name: str | None = None,
    folder: Path = Path("runs"),
    replace: bool = False,
    where: str | Launch = "process",
) -> Run:
    """Prepare what the file says and start it; `nbllm train --help` shows an example.

    Args:
        path: The file.
        name: The run's name.
        folder: Where runs are kept.
        replace: As in `nb.train`.
        where: As in `nb.train`: in a process of its own, or in several.

    Raises:
        UserError: The file cannot be read, is not TOML, or has an unknown section or setting.
    """
    from nbllm.training.start import train

    sections = _read(path)
    try:
        _check(sections, path)
        text, held_out = _text(sections["data"])
        lm = _model(sections, text)
        return train(
            lm,
            text,
            validation=held_out,
            name=name,
            folder=folder,
            replace=replace,
            where=where,
            plan=Plan.from_dict(sections["plan"]),
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
    TrainConfig.from_dict({name: value for name, value in given.items() if name != "epochs"})


def _check(sections: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Refuse what can be told to be wrong before any text is read.

    Raises:
        UserError: A setting is unknown, of another type or out of range.
    """
    data, tokenizer, model = (sections[name] for name in ("data", "tokenizer", "model"))
    _check_train(sections["train"], path)
    _known(data, ("source", *_load_settings(), "validation", "seed"), "[data]", path)
    source = data.get("source", "pydocs")
    if not isinstance(source, str) and not (
        isinstance(source, list) and source and all(isinstance(name, str) for name in source)
    ):
        raise UserError(f"source must be a name or a list of names, not {source!r}.", where="[data]")
    _check_type(data, "seed", int, "a whole number", "[data]")
    _known(tokenizer, ("vocab_size", "kind", "path"), "[tokenizer]", path)
    _known(model, ("path", "family", "seed", *_shape_settings()), "[model]", path)
    for section, title in ((tokenizer, "[tokenizer]"), (model, "[model]")):
        _check_type(section, "path", str, 'the name of a folder or file, such as "my-model"', title)
    _check_type(tokenizer, "kind", str, 'a name, such as "character"', "[tokenizer]")
    _check_type(model, "family", str, 'a name, such as "llama"', "[model]")
    _check_type(model, "seed", int, "a whole number", "[model]")
    if "path" in model and (len(model) > 1 or tokenizer):
        raise UserError(
            "A model with a path brings its shape and tokenizer along.",
            where=path,
            hint="Name only the path.",
        )
    if "path" in tokenizer and len(tokenizer) > 1:
        raise UserError("A tokenizer with a path has nothing else.", where=path, hint='path = "my-model"')


def _check_type(section: Mapping[str, Any], name: str, kind: type, wanted: str, title: str) -> None:
    value = section.get(name)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise UserError(f"{name} must be {wanted}, not {value!r}.", where=title)


def _shape_settings() -> tuple[str, ...]:
    """Return the names of the settings of a model's shape."""
    from nbllm.models.config import ModelConfig

    return tuple(field.name for field in dataclasses.fields(ModelConfig) if field.name != "family")


def _load_settings() -> tuple[str, ...]:
    """Return the names of the settings of `nbllm.data.load`."""
    from nbllm.data import load

    return tuple(name for name in inspect.signature(load).parameters if name != "source")


def _text(data: dict[str, Any]) -> tuple[Dataset, Dataset | None]:
    """Return training and held-out text as [data] says."""
    from nbllm.data import load, split

    text = load(data.get("source", "pydocs"), **{key: data[key] for key in _load_settings() if key in data})
    validation = data.get("validation", 0.1)
    if isinstance(validation, float | int) and not validation:
        return text, None
    if not isinstance(validation, str):
        return split(text, validation, seed=data.get("seed", 0))
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
        with open_regular(path) as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise UserError(
                f"The file has more than {MAX_BYTES:,} bytes: this is no configuration.", where=path
            )
        content = tomllib.loads(text.decode("utf-8"))
    except OSError as error:
        raise UserError(f"The file cannot be read: {error.strerror}.", where=path) from error
    except RecursionError as error:
        raise UserError("The file is not TOML: it is nested too deeply.", where=path) from error
    except UserError:
        raise
    except ValueError as error:  # TOML that is none, bytes that are no UTF-8, numbers of thousands of digits
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


def _model(sections: dict[str, dict[str, Any]], text: Any) -> LM:
    from nbllm.data.tokenizer import train_tokenizer
    from nbllm.lm import LM
    from nbllm.objectives import add_tokens
    from nbllm.opening import load, load_tokenizer

    model, tokenizer = dict(sections["model"]), sections["tokenizer"]
    if "path" in model:
        return load(model["path"])
    if "path" in tokenizer:
        made = load_tokenizer(expand_user(tokenizer["path"]))
    else:
        made = train_tokenizer(text, **tokenizer)
    add_tokens(made, our_names(sections["train"]).get("objective", TrainConfig.objective))
    return LM.new(model.pop("family", "llama"), tokenizer=made, **model)
