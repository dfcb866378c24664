"""Files and folders: the reader is chosen by suffix."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from nbllm.core.errors import DataError
from nbllm.core.registry import Registry
from nbllm.data.sources import tables, text_files
from nbllm.data.sources.compression import OPENERS, inner_suffix
from nbllm.data.sources.documents import Document
from nbllm.data.sources.omissions import Omissions

Reader = Callable[[Path, str, str | None, Omissions], Iterator[Document]]
TABLES: Registry[Reader] = Registry("table format")
for _suffixes, _reader in (
    ((".jsonl", ".ndjson"), tables.read_jsonl),
    ((".json",), tables.read_json),
    ((".csv", ".tsv"), tables.read_csv),
    ((".parquet",), tables.read_parquet),
):
    for _suffix in _suffixes:
        TABLES.register(_suffix)(_reader)

# What a folder is searched for. A single file of any other suffix is read as text.
TEXT_SUFFIXES = frozenset(
    (
        ".txt .text .md .rst .tex .html .xml .py .pyi .js .ts .c .h .cc .cpp .hpp .java .go .rs .rb .sh .sql"
        " .r .jl"
    ).split()
)
ARCHIVES = frozenset(".zip .tar .tgz .7z .rar .pdf .docx .epub .pkl .pickle .npy .npz".split())


def has_known_suffix(path: Path) -> bool:
    """Return whether the name is that of a file: no hub data set is called `train.jsonl.gz`."""
    suffix = inner_suffix(path)
    return suffix in TABLES or suffix in TEXT_SUFFIXES or suffix in ARCHIVES or path.suffix in OPENERS


def read_path(path: Path, column: str | None, sample_by: str, omissions: Omissions) -> Iterator[Document]:
    """Yield the documents of a file, or of all files of a folder in the order of their names."""
    if not path.is_dir():
        yield from _read_file(path, path.name, column, sample_by, omissions)
        return
    others: Counter[str] = Counter()
    for file in _walk(path):
        suffix = inner_suffix(file)
        if suffix in TABLES or suffix in TEXT_SUFFIXES:
            name = file.relative_to(path).as_posix()
            yield from _read_file(file, name, column, sample_by, omissions)
        else:
            others[file.suffix or "no suffix"] += 1
    if others:
        kinds = ", ".join(f"{count} x {suffix}" for suffix, count in others.most_common())
        omissions.note(f"Files of other kinds in the folder were not read: {kinds}.")


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, hidden ones aside, in order; links to folders are not followed."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(parent) / name


def _read_file(
    path: Path, name: str, column: str | None, sample_by: str, omissions: Omissions
) -> Iterator[Document]:
    suffix = inner_suffix(path)
    if not path.is_file():  # a pipe would block, a broken link is no file
        omissions.add(
            "no regular file",
            "This is no regular file.",
            where=str(path),
            hint="Copy its content into a file.",
        )
        return
    if suffix in ARCHIVES:
        raise DataError(
            f"A {suffix} file cannot be read as text.",
            where=path,
            hint="Unpack or convert it to text, JSONL, CSV or Parquet, and give the file or its folder.",
        )
    before = sum(omissions.counts.values())
    empty = True
    documents = (
        TABLES[suffix](path, name, column, omissions)
        if suffix in TABLES
        else text_files.read_text(path, name, sample_by, omissions)
    )
    for document in documents:
        empty = False
        yield document
    if empty and sum(omissions.counts.values()) == before:
        omissions.add(
            "empty file", "The file has no text.", where=str(path), hint="Remove it or give another file."
        )
