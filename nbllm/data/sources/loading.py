"""`load`: any source of text as a `datasets.Dataset` with a column `text`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import DataError, UserError, listed
from nbllm.core.quantities import counted
from nbllm.data.sources.columns import ColumnChoice
from nbllm.data.sources.documents import Document
from nbllm.data.sources.embedded import SOURCES
from nbllm.data.sources.omissions import Omissions
from nbllm.data.sources.paths import check_no_url, paths_of, paths_of_list

if TYPE_CHECKING:
    from datasets import Dataset

    from nbllm.data.sources.reading import Reading


def load(  # noqa: PLR0913 - each is a question of its own about the source
    source: str | os.PathLike[str] | Dataset | Iterable[Any],
    *,
    column: str | None = None,
    on_error: str = "raise",
    sample_by: str = "document",
    encoding: str | None = None,
    subset: str | None = None,
    split: str | None = None,
    max_bytes: int | None = None,
    min_score: int | None = None,
    licences: str | Collection[str] | None = None,
) -> Dataset:
    """Load text from anywhere.

    Args:
        source: One of these:

            - an embedded source (`pydocs`, `pydocs-all`, `pystdlib`); a file of that name is given as "./pydocs";
            - a file of text, JSONL, JSON, CSV, TSV, Parquet, Arrow or Feather, also packed (.gz, .zst, .bz2,
              .xz); a ZIP archive or a folder of such files; a pattern such as "data/*.txt"; a list of these;
            - a folder that `nbllm.data.Pipeline` or `save_to_disk` has written;
            - a `datasets.Dataset`, a data frame of pandas or polars, a `pyarrow.Table`, a column of one;
            - texts, or rows (mappings), or conversations (lists of messages);
            - a web archive (.warc, of which the main text of each page is taken, or .wet; needs nbllm[web]), a dump
              of MediaWiki (Wikipedia; XML), of StackExchange (Posts.xml) or Reddit, a book of Project Gutenberg;
            - the name of a data set on the hub, or a clone of its repository. No other network is used.
        column: The column of a table that holds the text. If not given: `text`; else the one with conversations;
            else the only one that holds text, where labels such as `id` or `url` count as none.
        on_error: "raise" stops at the first line that cannot be used; "skip" leaves it out, warns at the end
            with a `SkippedWarning` and writes what was left out into `dataset.info.description`.
        sample_by: What of a text file is one document: "document" (the file), "paragraph" (separated by blank
            lines) or "line".
        encoding: Of files of text, CSV and JSON. If not given, a byte-order mark decides, else it is UTF-8.
        subset: The subset (configuration) of a data set of the hub, or of a clone.
        split: The split of such a data set, or the files in a folder whose names tell it. If not given, "train",
            where the files of a folder or an archive are those of several splits.
        max_bytes: The most bytes to read, unpacked. If not given, a hundred times what the files have on disk.
        min_score: The least score of a post, in a dump of StackExchange or Reddit or JSON Lines with a number `score`.
        licences: Of a source tree, the licences under which files are read: "permissive", or SPDX identifiers. A file
            names its own (SPDX-License-Identifier), or the nearest LICENSE or COPYING above it counts.

    Returns:
        A data set with the columns `text` and `source` (topic, file, or file:line). Conversations also have
        `messages`, each with `role` and `content`; `pack` and training encode them with the tokenizer's chat
        template, and `text` renders them with plain words for the roles. A `datasets.Dataset` keeps its other
        columns.

    Raises:
        DataError: Text cannot be read; it says where and what to do.
        UserError: A setting that does not exist, or that this kind of source does not have.
    """
    from nbllm.data.sources.budget import Budget
    from nbllm.data.sources.reading import Reading

    omissions = Omissions(on_error)
    reading = Reading(
        omissions=omissions, column=column, sample_by=sample_by, encoding=encoding, split=split, subset=subset,
        budget=Budget(max_bytes), min_score=min_score, licences=licences,
    )  # fmt: skip
    if not isinstance(source, str | os.PathLike):
        return _from_object(source, reading)
    name = os.fspath(source)
    if isinstance(source, str) and name in SOURCES:
        _refuse(
            subset=subset,
            split=split,
            column=column,
            encoding=encoding,
            min_score=min_score,
            licences=licences,
        )
        return _collect(SOURCES[name](omissions), f"{name}.", name, omissions)
    paths = paths_of(source)
    if len(paths) == 1 and (saved := _saved(paths[0][0], reading)) is not None:
        return _from_dataset(saved, reading, name)
    if paths:
        return _from_files(paths, Path(name).name, name, reading)
    _check_hub_name(name, isinstance(source, str))
    from nbllm.data.sources.hub import fetch

    _refuse(encoding=encoding, min_score=min_score, licences=licences)
    dataset = fetch(name, subset, split or "train")
    return _from_dataset(dataset, reading, name)


def _refuse(**settings: object) -> None:
    """Refuse settings that this kind of source would otherwise drop in silence."""
    for name, value in settings.items():
        if value is not None:
            raise UserError(f"{name}={value!r} has no meaning for this source.", hint=f"Leave {name} out.")


def _collect(documents: Iterator[Document], title: str, where: str, omissions: Omissions) -> Dataset:
    from nbllm.data.sources.collecting import Collector

    dataset = Collector().collect(documents, omissions)
    if len(dataset) == 0:
        raise DataError(
            f"There is no text left to use. {omissions.summary()}".strip(),
            where=where,
            hint="Give another source.",
        )
    dataset.info.description = omissions.report(title)
    return dataset


def check_settings(paths: list[tuple[Path, str]], reading: Reading) -> None:
    """Refuse settings that have no meaning for these files.

    Raises:
        UserError: There is one.
    """
    from nbllm.data.sources.files import is_archive_or_folder

    if not any(is_archive_or_folder(path) for path, _ in paths):
        _refuse(split=reading.split)
    if not any(path.is_dir() for path, _ in paths):
        _refuse(licences=reading.licences)
    if not any(path.is_dir() for path, _ in paths):
        _refuse(subset=reading.subset)


def _from_files(paths: list[tuple[Path, str]], title: str, where: str, reading: Reading) -> Dataset:
    from nbllm.data.sources.files import read_paths

    check_settings(paths, reading)
    return _collect(read_paths(paths, reading), f"{title}.", where, reading.omissions)


def _saved(folder: Path, reading: Reading) -> Dataset | None:
    """Open a folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` made; None for any other."""
    try:
        dataset = _load_from_disk(folder, reading)
    except UserError:
        raise
    except Exception as error:  # of a damaged folder the library raises whatever comes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"The saved data set cannot be opened: {reason}",
            where=folder,
            hint="Save it again: save_to_disk.",
        ) from error
    for file in () if dataset is None else dataset.cache_files:
        if not Path(file["filename"]).resolve().is_relative_to(folder.resolve()):
            raise DataError(
                "The saved data set names a file outside of its folder.",
                where=file["filename"],
                hint="Save it again: save_to_disk.",
            )
    return dataset


def _load_from_disk(folder: Path, reading: Reading) -> Dataset | None:
    import datasets

    if (folder / "dataset_dict.json").is_file():
        splits = datasets.DatasetDict.load_from_disk(str(folder))
        split = reading.split or "train"
        if split not in splits:
            raise UserError(
                f"There is no split {split!r}.", where=folder, hint=f"The splits are {listed(splits)}."
            )
        return splits[split]
    if (folder / "manifest.json").is_file() and (prepared := _prepared(folder)) is not None:
        _refuse(split=reading.split, subset=reading.subset)
        return prepared
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        _refuse(split=reading.split, subset=reading.subset)
        return datasets.Dataset.load_from_disk(str(folder))
    return None


def _prepared(folder: Path) -> Dataset | None:
    """Return what `Pipeline.run` has written into a folder; None for any other folder."""
    from nbllm.data.pipeline.prepared import Prepared

    found = Prepared.open(folder)
    return None if found is None else found.dataset()


def _from_object(source: Any, reading: Reading) -> Dataset:
    import datasets

    from nbllm.data.sources.frames import frame_documents, is_frame, row_documents
    from nbllm.data.sources.json_files import json_rows

    if isinstance(source, list | tuple) and (paths := paths_of_list(source)):
        return _from_files(paths, f"{len(source)} files and folders", "the list", reading)
    _refuse(subset=reading.subset, split=reading.split, encoding=reading.encoding)
    _refuse(min_score=reading.min_score, licences=reading.licences)
    if isinstance(source, datasets.Dataset):
        return _from_dataset(source, reading, "the data set")
    if isinstance(source, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise DataError(
            f"This is a dictionary of the splits {listed(source)}.",
            hint=f"Load one of them: load(data[{next(iter(source), 'train')!r}]).",
        )
    if isinstance(source, datasets.IterableDataset):
        raise DataError(
            "A streamed data set has no length and cannot be split or shuffled.",
            hint="Take a part of it: load(datasets.Dataset.from_list(list(data.take(10_000)))).",
        )
    if is_frame(source):
        return _collect(frame_documents(source, reading), "A table.", "the table", reading.omissions)
    if isinstance(source, Mapping):
        rows = json_rows(dict(source), reading.column) or []
    elif isinstance(source, Iterable) and not isinstance(source, bytes | bytearray):
        rows = json_rows(list(source), reading.column) or []
    else:
        raise DataError(
            f"Text cannot be loaded from {type(source).__name__}.",
            hint="Give a name, a path, a data set, a data frame or a list of texts.",
        )
    if not any(isinstance(row, Mapping) for row in rows):
        _refuse(column=reading.column)
    return _collect(
        row_documents(rows, reading, "the list"),
        counted(len(rows), "texts") + ".",
        "the list",
        reading.omissions,
    )


def _from_dataset(dataset: Dataset, reading: Reading, where: str) -> Dataset:
    """Check the text column of a data set and call it `text`."""
    from nbllm.data.sources.arrow_files import check_column, example_row

    _refuse(min_score=reading.min_score, licences=reading.licences)
    omissions = reading.omissions
    choice = ColumnChoice(reading.column, omissions, where)
    example = example_row(dataset.features.arrow_schema)
    chosen = choice.choose(dataset.column_names, example, where)
    good: list[int] = []
    made: list[Document] = []
    if chosen is not None:
        check_column(dataset.data.column(chosen), where)
        values = dataset.select_columns(chosen).with_format(None)
        row = 0
        for batch in values.iter(256):
            for value in batch[chosen]:
                document = choice.document({chosen: value}, str(row), f"{where}, row {row}")
                if document is not None:
                    good.append(row)
                    if document.messages is not None:
                        made.append(document)
                row += 1
    if not good:
        summary = omissions.summary() or "It has no rows."
        raise DataError(f"There is no text to use. {summary}", where=where, hint="Give another source.")
    assert chosen is not None
    if len(good) < len(dataset):
        dataset = dataset.select(good)
    if made:
        dataset = _with_messages(dataset, made)
    elif chosen != "text":
        if "text" in dataset.column_names:
            dataset = dataset.remove_columns("text")
        dataset = dataset.rename_column(chosen, "text")
    if omissions.counts:
        dataset.info.description = omissions.report(dataset.info.description)
    return dataset


def _with_messages(dataset: Dataset, documents: list[Document]) -> Dataset:
    """Put conversations and their plain rendering in the place of what held them."""
    ours = [name for name in ("text", "messages") if name in dataset.column_names]
    dataset = dataset.remove_columns(ours) if ours else dataset
    dataset = dataset.add_column("text", [document.text for document in documents])
    return dataset.add_column("messages", [document.messages for document in documents])


def _check_hub_name(name: str, is_text: bool) -> None:
    """Raise for what is neither a path nor can be a hub name, or is nearly an embedded name."""
    from nbllm.data.sources.files import has_known_suffix
    from nbllm.data.sources.hub import HUB_NAME

    check_no_url(name)
    close = difflib.get_close_matches(name, list(SOURCES), n=1, cutoff=0.75) if len(name) < 100 else []
    if is_text and not close and HUB_NAME.fullmatch(name) and not has_known_suffix(Path(name)):
        return
    if "\n" in name or len(name) > 1000:
        raise DataError(
            "This text is not the name of a file, a folder or an embedded source.",
            hint="A text itself is given in a list: [text].",
        )
    hint = (
        f"Check the path. Embedded sources: {', '.join(SOURCES)}. A text itself is given in a list: [text]."
    )
    raise DataError(
        f"There is no file, folder or embedded source {name!r}.",
        where=Path(name).absolute(),
        hint=f"Did you mean {close[0]!r}?" if close else hint,
    )
