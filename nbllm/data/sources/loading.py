"""`load`: any source of text as a `datasets.Dataset` with a column `text`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import DataError, UserError
from nbllm.data.sources.columns import accept_text, choose_column
from nbllm.data.sources.documents import Document
from nbllm.data.sources.embedded import SOURCES
from nbllm.data.sources.omissions import Omissions

if TYPE_CHECKING:
    from datasets import Dataset

SAMPLE_BY = ("document", "paragraph", "line")


def load(
    source: str | os.PathLike[str] | Dataset | Sequence[str],
    *,
    column: str | None = None,
    on_error: str = "raise",
    sample_by: str = "document",
    subset: str | None = None,
    split: str | None = None,
) -> Dataset:
    """Load text from anywhere.

    Args:
        source: An embedded source (`pydocs`, `pydocs-all`, `pystdlib`); a file of text, JSONL, JSON, CSV,
            TSV or Parquet, also packed (.gz, .zst, .bz2, .xz); a folder of such files; a
            `datasets.Dataset`; a list of strings; or the name of a data set on the hub. A file that has
            the name of an embedded source is given as "./pydocs".
        column: The column of a table that holds the text; if not given, `text` or the only one with strings.
        on_error: "raise" stops at the first line that cannot be used; "skip" leaves it out, warns at the end
            with a `SkippedWarning` and writes what was left out into `dataset.info.description`.
        sample_by: What of a text file is one document: "document" (the file), "paragraph" (blank lines part
            them) or "line".
        subset: The subset (configuration) of a hub data set.
        split: The split of a hub data set; "train" when not given.

    Returns:
        A data set with the columns `text` and `source` (topic, file, or file:line); a `datasets.Dataset`
        keeps its other columns.

    Raises:
        DataError: Text cannot be read; it says where and what to do.
        UserError: A setting that does not exist, or that this kind of source does not have.
    """
    if sample_by not in SAMPLE_BY:
        raise UserError(f"sample_by is {sample_by!r}; it must be one of {', '.join(map(repr, SAMPLE_BY))}.")
    omissions = Omissions(on_error)
    if not isinstance(source, str | os.PathLike):
        _refuse(subset=subset, split=split)
        return _from_object(source, column, omissions)
    name = os.fspath(source)
    if isinstance(source, str) and name in SOURCES:
        _refuse(subset=subset, split=split, column=column)
        return _collect(SOURCES[name](omissions), f"{name}.", name, omissions)
    path = Path(name).expanduser()
    if os.path.lexists(path):
        _refuse(subset=subset, split=split)
        from nbllm.data.sources.files import read_path

        return _collect(read_path(path, column, sample_by, omissions), f"{path.name}.", name, omissions)
    _check_hub_name(name, isinstance(source, str))
    from nbllm.data.sources.hub import fetch

    dataset = fetch(name, subset, split or "train")
    return _from_object(dataset, column, omissions, where=name)


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


def _from_object(source: Any, column: str | None, omissions: Omissions, where: str | None = None) -> Dataset:
    import datasets

    if isinstance(source, datasets.Dataset):
        return _from_dataset(source, column, omissions, where or "the data set")
    if isinstance(source, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise DataError(
            f"This is a dictionary of the splits {', '.join(map(repr, source))}.",
            hint=f"Load one of them: load(data[{next(iter(source), 'train')!r}]).",
        )
    if isinstance(source, datasets.IterableDataset):
        raise DataError(
            "A streamed data set has no length and cannot be split or shuffled.",
            hint="Take a part of it: load(datasets.Dataset.from_list(list(data.take(10_000)))).",
        )
    if isinstance(source, list | tuple):
        return _collect(_from_list(source, column, omissions), f"{len(source)} texts.", "the list", omissions)
    raise DataError(
        f"Text cannot be loaded from {type(source).__name__}.",
        hint="Give a name, a path, a datasets.Dataset or a list of strings.",
    )


def _from_list(texts: Sequence[Any], column: str | None, omissions: Omissions) -> Iterator[Document]:
    _refuse(column=column)
    for number, value in enumerate(texts):
        text = accept_text(value, "text", where=f"entry {number} of the list", omissions=omissions)
        if text is not None:
            yield Document(text, str(number), f"entry {number} of the list")


def _from_dataset(dataset: Dataset, column: str | None, omissions: Omissions, where: str) -> Dataset:
    """Check the text column of a data set and call it `text`."""
    textual = [
        name
        for name, feature in dataset.features.items()
        if getattr(feature, "dtype", None) in ("string", "large_string")
    ]
    chosen = choose_column(dataset.column_names, textual, column, where=where, omissions=omissions)
    good: list[int] = []
    if chosen is not None:
        values = dataset.select_columns(chosen).with_format(None)
        row = 0
        for batch in values.iter(256):
            for value in batch[chosen]:
                if accept_text(value, chosen, where=f"{where}, row {row}", omissions=omissions) is not None:
                    good.append(row)
                row += 1
    if not good:
        summary = omissions.summary() or "It has no rows."
        raise DataError(f"There is no text to use. {summary}", where=where, hint="Give another source.")
    if len(good) < len(dataset):
        dataset = dataset.select(good)
    if chosen != "text":
        if "text" in dataset.column_names:
            dataset = dataset.remove_columns("text")
        dataset = dataset.rename_column(chosen, "text")
    if omissions.counts:
        dataset.info.description = omissions.report(dataset.info.description)
    return dataset


def _check_hub_name(name: str, is_text: bool) -> None:
    """Raise for what is neither a path nor can be a hub name, or is nearly an embedded name."""
    from nbllm.data.sources.files import has_known_suffix
    from nbllm.data.sources.hub import HUB_NAME

    close = difflib.get_close_matches(name, list(SOURCES), n=1, cutoff=0.75)
    if is_text and not close and HUB_NAME.fullmatch(name) and not has_known_suffix(Path(name)):
        return
    embedded = ", ".join(SOURCES)
    raise DataError(
        f"There is no file, folder or embedded source {name!r}.",
        where=Path(name).expanduser().absolute(),
        hint=f"Did you mean {close[0]!r}?" if close else f"Check the path. Embedded sources: {embedded}.",
    )
