"""Where rows that hold examples come from: lists, data sets, files, folders, the embedded sets, the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nbllm.core.errors import DataError, UserError
from nbllm.core.io import expand_user
from nbllm.data.sources import SOURCES
from nbllm.data.sources.inputs import Input
from nbllm.data.sources.omissions import Omissions
from nbllm.data.sources.reading import Reading
from nbllm.finetuning.instruction_sets import INSTRUCTION_SETS

_LINES = (".jsonl", ".ndjson")
_TABLES = (".parquet", ".csv", ".tsv", ".arrow", ".feather")
_READ_HERE = (".json", *_LINES, *_TABLES)  # what keeps the fields of its rows


def rows_of(data: Any) -> Iterable[Any]:
    """Return the rows of what holds examples.

    Args:
        data: A list or a data set; or a name: of an embedded set (`INSTRUCTION_SETS`); of a file of JSON, JSON Lines,
            CSV, TSV, Parquet, Arrow or Feather, which may be packed (.gz, .zst, .bz2, .xz) but for the last three; of
            a folder of such files, or one that `Dataset.save_to_disk` made; of a data set on the hub, whose split
            "train" is taken; or of text, as for `nb.data.load`.

    Raises:
        UserError: It is no such thing.
        DataError: It cannot be read.
    """
    if isinstance(data, (str, os.PathLike)):
        return _named(data)
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise UserError(
            f"The examples must be a list, a data set or a name, not {type(data).__name__}.",
            hint='[{"messages": [...]}, ...]',
        )
    return data


def _named(name: str | os.PathLike[str]) -> Iterable[Any]:
    from nbllm.data.sources.hub import HUB_NAME, fetch
    from nbllm.data.sources.loading import load

    text, path = os.fspath(name), expand_user(name)
    if text in INSTRUCTION_SETS:
        return INSTRUCTION_SETS[text]()
    if path.is_file() and Input.of_file(path, path.name).suffix in _READ_HERE:
        return _file(path)
    if path.is_dir():
        if (path / "state.json").is_file():
            import datasets

            saved: Iterable[Any] = datasets.Dataset.load_from_disk(str(path))
            return saved
        files = [each for each in sorted(path.rglob("*")) if each.is_file() and _is_read_here(each)]
        if files:
            return [row for file in files for row in _file(file)]
    elif not path.exists() and text not in SOURCES and HUB_NAME.fullmatch(text) and not path.suffix:
        fetched: Iterable[Any] = fetch(text, None, "train")
        return fetched
    loaded: Iterable[Any] = load(name)
    return loaded


def _is_read_here(path: Path) -> bool:
    return Input.of_file(path, path.name).suffix in _READ_HERE


def _file(path: Path) -> Sequence[Any]:
    source = Input.of_file(path, path.name)
    if source.suffix in _TABLES:
        return _table(path, source.suffix)
    content = source.read(Reading(omissions=Omissions("raise")))
    assert content is not None  # damage raises
    try:
        text = content.decode("utf-8-sig")
        if source.suffix in _LINES:
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"The examples cannot be read: {error}", where=path) from None
    if isinstance(value, Mapping):
        return [value]  # a task of Natural Instructions
    if not isinstance(value, list):
        raise DataError("The file holds no list of examples.", where=path)
    return value


def _table(path: Path, suffix: str) -> Sequence[Any]:
    import pyarrow as pa
    from pyarrow import csv, feather, parquet

    try:
        if suffix == ".parquet":
            table = parquet.read_table(path)
        elif suffix in (".arrow", ".feather"):
            table = feather.read_table(path)
        else:
            options = csv.ParseOptions(delimiter="\t" if suffix == ".tsv" else ",", newlines_in_values=True)
            table = csv.read_csv(path, parse_options=options)  # packed ones, too
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"The examples cannot be read: {error}", where=path) from error
    rows: list[Any] = table.to_pylist()
    return rows
