"""A benchmark's data by split, in any of the forms in which they can be given."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import DataError, listed
from nbllm.core.io import expand_user
from nbllm.evaluation.parallel import parallel_files, read_parallel
from nbllm.evaluation.records import READERS, Record, as_records, read_records, stem_of, suffix_of

if TYPE_CHECKING:
    from datasets import Dataset

EMBEDDED = Path(__file__).parent / "tasks" / "embedded"
_NAME_PARTS = re.compile(r"[A-Za-z]+")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a benchmark is published.

    Attributes:
        task: The task's name, which is also the folder of the small set of our own.
        splits: Names of the split that is measured, the first that is there; "" is of files that name no split.
        shot_splits: Names of the split that worked examples are taken from, the first that is there.
        columns: Of CSV files without a header.
        subset: Of the data set on the hub, and the folder of its files where there is one; "" for its only one.
        languages: From which and into which, where the benchmark is also published as two plain text files.
    """

    task: str
    splits: tuple[str, ...] = ("test", "validation", "val", "valid", "dev")
    shot_splits: tuple[str, ...] = ("train", "dev", "validation", "val", "valid")
    columns: tuple[str, ...] = ()
    subset: str = ""
    languages: tuple[str, str] | None = None

    def first_of(self, file: Path) -> Path:
        """Return a file, or that of the source text where it is the translation."""
        pair = parallel_files(file, self.languages) if self.languages and not _is_table(file) else None
        return pair[0] if pair else file

    def reads(self, file: Path) -> bool:
        """Say whether a file of a folder holds records; of two plain text files, that of the source text."""
        if _is_table(file) or self.languages is None:
            return _is_table(file)
        pair = parallel_files(file, self.languages)
        return pair is not None and (pair[0] == file or not pair[0].is_file())

    def read(self, file: Path) -> list[Record]:
        """Return the records of a file.

        Raises:
            DataError: It cannot be read.
        """
        if _is_table(file) or self.languages is None:
            return read_records(file, self.columns)
        return read_parallel(file, self.languages)


def load_split(data: Any, layout: Layout, splits: Sequence[str]) -> tuple[list[Record], str]:
    """Return the records of a split, and a description of where they come from; of neither, `[]` and "".

    Args:
        data: A file or folder in the published layout, the name of a data set on the hub, a `datasets.Dataset` or
            `DatasetDict`, or rows. `None`: the small set of our own.
        layout: How the benchmark is published.
        splits: Names of the split, the first that is there. A single file, a `Dataset` and rows are measured whole,
            and have no other split, but for the files beside a file.

    Raises:
        DataError: The data cannot be read.
    """
    measured = tuple(splits) == layout.splits
    if data is None:
        records, _ = _from_folder(EMBEDDED / layout.task, layout, splits)
        return records, "the small set that comes with nbllm" if records else ""
    columns = getattr(data, "column_names", None)
    if isinstance(columns, dict):  # a DatasetDict
        name = next((name for name in splits if name in columns), None)
        found = [] if name is None else as_records(data[name], f"split {name}")
        return found, f"the split {name!r} of what was given as data"
    if isinstance(data, (str, os.PathLike)):
        return _from_path(data, layout, splits, measured)
    if not measured:
        return [], ""
    return as_records(data, "data"), "given as data"


def _from_path(
    data: str | os.PathLike[str], layout: Layout, splits: Sequence[str], measured: bool
) -> tuple[list[Record], str]:
    path = expand_user(data)
    if path.is_dir():
        return _from_folder(path, layout, splits)
    if path.is_file():
        if measured:
            return layout.read(path), path.name
        return _from_folder(path.parent, layout, splits, besides=layout.first_of(path))
    if (
        isinstance(data, str)
        and "/" in data
        and data.count("/") == 1
        and not data.startswith((".", "/", "~"))
    ):
        return _from_hub(data, layout, splits)
    raise DataError("There is no such file or folder.", where=path, hint="Check the path.")


def _from_folder(
    folder: Path, layout: Layout, splits: Sequence[str], besides: Path | None = None
) -> tuple[list[Record], str]:
    """Return the records of all files whose names, or whose folders' names, tell the split."""
    files = sorted(
        file
        for file in (folder.glob("*") if besides else folder.rglob("*"))
        if layout.reads(file) and file.is_file() and file != besides
    )
    inside = [file for file in files if layout.subset in file.relative_to(folder).parts[:-1]]
    files = inside or files
    if not files and not besides:
        text = ", or two text files named by their languages, ." + " and .".join(layout.languages or ())
        raise DataError(
            "The folder holds no file of a benchmark.",
            where=folder,
            hint=f"Known: {', '.join(READERS)}{text if layout.languages else ''}.",
        )
    for split in splits:
        chosen = [file for file in files if _is_of(file, folder, split)]
        if chosen:
            records = [record for file in chosen for record in layout.read(file)]
            return (
                records,
                f"{len(chosen)} file{'s'[: len(chosen) > 1]} of the split {split!r} in {folder.name}",
            )
    if tuple(splits) == layout.splits:
        raise DataError(
            f"No file is of the split {' or '.join(splits)}: {listed(file.name for file in files)}.",
            where=folder,
            hint="Name the file itself, or keep the names as published.",
        )
    return [], ""


def _is_table(file: Path) -> bool:
    return suffix_of(file) in READERS


def _is_of(file: Path, folder: Path, split: str) -> bool:
    """Say whether a file is of a split: "test.jsonl", "astronomy_test.csv", "test/astronomy.csv", "dev-v1.1.json"."""
    parts = [part.lower() for part in _NAME_PARTS.findall(stem_of(file))]
    known = {"train", "test", "dev", "val", "valid", "validation"} & set(parts)
    if split in parts:
        return True
    if known:
        return False
    return split in (parent.name.lower() for parent in file.relative_to(folder).parents)


def _from_hub(name: str, layout: Layout, splits: Sequence[str]) -> tuple[list[Record], str]:
    from nbllm.data.sources.hub import fetch

    problem: DataError | None = None
    for split in splits:
        try:
            found: Dataset = fetch(name, layout.subset or None, split)
        except DataError as error:
            problem = problem or error
            if error.what.startswith("There is no file or folder"):
                break
            continue
        return as_records(found, f"{name}, split {split}"), f"{name} on the hub, split {split!r}"
    if problem is not None and tuple(splits) == layout.splits:
        raise problem
    return [], ""
