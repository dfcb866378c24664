"""Files, archives and folders: the reader is chosen by suffix."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from nbllm.core.errors import DataError, UserError
from nbllm.core.registry import Registry
from nbllm.core.terminal import visible_line
from nbllm.data.sources import arrow_files, csv_files, json_files, splits, text_files, warc_files, xml_dumps
from nbllm.data.sources.budget import LimitReachedError
from nbllm.data.sources.documents import Document
from nbllm.data.sources.inputs import DAMAGE, UNPACKERS, Input, inner_suffix
from nbllm.data.sources.licences import allows, licence_of, wanted_licences
from nbllm.data.sources.reading import Reading
from nbllm.data.sources.zip_files import open_zip

Reader = Callable[[Input, Reading], Iterator[Document]]
TABLES: Registry[Reader] = Registry("table format")
for _suffixes, _reader in (
    ((".jsonl", ".ndjson"), json_files.read_jsonl),
    ((".json",), json_files.read_json),
    ((".csv", ".tsv"), csv_files.read_csv),
    ((".parquet",), arrow_files.read_parquet),
    ((".arrow", ".feather"), arrow_files.read_arrow),
    ((".warc", ".wet"), warc_files.read_warc),
    ((".xml",), xml_dumps.read_xml),
):
    for _suffix in _suffixes:
        TABLES.register(_suffix)(_reader)

# What a folder is searched for. A single file of any other suffix is read as text.
TEXT_SUFFIXES = frozenset(
    (
        ".txt .text .md .rst .tex .html .py .pyi .js .jsx .ts .tsx .c .h .cc .cpp .cxx .hpp .hh .cs .java .kt .scala"
        " .go .rs .rb .php .lua .pl .swift .m .mm .hs .ml .clj .ex .erl .dart .f90 .sh .sql .r .jl"
    ).split()
)
UNREADABLE = frozenset(".tar .tgz .7z .rar .pdf .docx .epub .pkl .pickle .npy .npz".split())
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def has_known_suffix(path: Path) -> bool:
    """Return whether the name is that of a file: no hub data set is called `train.jsonl.gz`."""
    suffix = inner_suffix(path)
    return (
        _is_readable(suffix) or suffix in UNREADABLE or suffix == ".zip" or path.suffix.lower() in UNPACKERS
    )


def is_archive_or_folder(path: Path) -> bool:
    """Return whether a path holds several files, which may be those of several splits."""
    return path.is_dir() or inner_suffix(path) == ".zip"


def read_paths(paths: Sequence[tuple[Path, str]], reading: Reading) -> Iterator[Document]:
    """Yield the documents of files and folders, in the order given.

    Args:
        paths: Each with the name that its documents are called by; "" for the names inside a folder alone.
        reading: The settings.

    Raises:
        DataError: Something cannot be used, and is not to be left out.
    """
    yield from read_files(list_files(paths, reading), reading)


def list_files(paths: Sequence[tuple[Path, str]], reading: Reading) -> list[tuple[Path, str]]:
    """Return files, and those that are to be read of folders, each with the name that its documents are called by.

    Raises:
        DataError: A folder cannot be read, and is not to be left out.
    """
    files: list[tuple[Path, str]] = []
    for path, name in paths:
        files += _folder_files(path, name, reading) if path.is_dir() else [(path, name or path.name)]
    return files


def read_files(files: Sequence[tuple[Path, str]], reading: Reading) -> Iterator[Document]:
    """Yield the documents of files, in the order given.

    Args:
        files: Each with the name that its documents are called by.
        reading: The settings.

    Raises:
        DataError: Something cannot be used, and is not to be left out.
    """
    path = Path()
    try:
        for path, name in files:
            yield from _read_file(path, name, reading)
    except LimitReachedError:
        limit = reading.budget.limit
        reading.omissions.add(
            "text beyond max_bytes",
            f"More than {limit:,} bytes would be read"
            + (", a hundred times what the files have on disk." if reading.budget.max_bytes is None else "."),
            where=visible_line(path),
            hint=f"If that is right, allow more: max_bytes={10 * limit}.",
        )


def _folder_files(folder: Path, prefix: str, reading: Reading) -> list[tuple[Path, str]]:
    found = list(_walk(folder, reading))
    if any(inner_suffix(path) in TABLES for path in found) and splits.is_clone(folder):
        split = reading.split or "train"
        read = splits.clone_files(folder, reading.subset, split)
        left = len(set(found) - set(read))
        reading.omissions.note(
            f"A data set's repository: the {len(read)} files of its split {split!r} were read, {left} were not."
        )
        names = [os.path.relpath(path, folder) for path in read]
    else:
        others = Counter(path.suffix or "no suffix" for path in found if not _is_readable(inner_suffix(path)))
        names = [str(path.relative_to(folder)) for path in found if _is_readable(inner_suffix(path))]
        names, note = splits.choose_split(names, reading.split)
        if note:
            reading.omissions.note(note)
        if others:
            kinds = ", ".join(f"{count} x {suffix}" for suffix, count in others.most_common())
            reading.omissions.note(f"Files of other kinds in the folder were not read: {kinds}.")
    if reading.licences is not None:
        names = _licensed(folder, names, reading)
    return [(folder / name, os.path.join(prefix, name)) for name in names]


def _licensed(folder: Path, names: Sequence[str], reading: Reading) -> list[str]:
    """Return the files that stand under a licence that is wanted; how many others there are becomes a note."""
    assert reading.licences is not None
    wanted, known = wanted_licences(reading.licences), dict[Path, str | None]()
    found = {name: licence_of(folder / name, folder, known) for name in names}
    left = Counter(
        licence or "none that is known" for licence in found.values() if not allows(licence, wanted)
    )
    if left:
        kinds = ", ".join(f"{count} x {visible_line(licence)}" for licence, count in left.most_common(20))
        reading.omissions.note(f"Files under other licences were not read: {kinds}.")
    return [name for name in names if allows(found[name], wanted)]


def _is_readable(suffix: str) -> bool:
    return suffix in TABLES or suffix in TEXT_SUFFIXES


def _walk(folder: Path, reading: Reading) -> Iterator[Path]:
    """Yield the files below a folder, except hidden ones, in order.

    A link is followed to a file inside the folder, and no further: a folder that came from elsewhere would pull in
    files of this machine. Links to folders inside are left, for what they hold is found anyway.
    """
    inside = [folder.resolve()]
    inside += [
        parent.parent / "blobs" for parent in inside[0].parents if parent.name == "snapshots"
    ]  # the hub's cache

    def unreadable(error: OSError) -> None:
        reading.omissions.add(
            "unreadable folder",
            f"The folder cannot be read: {error.strerror}.",
            where=visible_line(error.filename),
            hint="Check that you may read it.",
        )

    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [name for name in folders if _is_product(Path(parent) / name)]:
            folders.remove(name)
            reading.omissions.note(
                f"{visible_line(Path(parent, name))} is a run or a model, and was not read."
            )
        for name in sorted(name for name in (*folders, *files) if not name.startswith(".")):
            path = Path(parent) / name
            if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in inside):
                reading.omissions.add(
                    "link out of the folder",
                    "This is a link to something outside of the folder.",
                    where=visible_line(f"{path} -> {os.readlink(path)}"),
                    hint="Copy it here, or load what it points to by its own path.",
                )
            elif name in files:
                yield path


def _is_product(folder: Path) -> bool:
    """Whether a folder inside another is a run or a saved model: what came of training, and no text."""
    is_run = (folder / "run.json").is_file() and (folder / "events").is_dir()
    return is_run or ((folder / "config.json").is_file() and any(folder.glob("*.safetensors")))


def _read_file(path: Path, name: str, reading: Reading) -> Iterator[Document]:
    suffix = inner_suffix(path)
    if not path.is_file():  # a pipe would block, a broken link is no file
        reading.omissions.add(
            "no regular file",
            "This is not a regular file.",
            where=visible_line(path),
            hint="Copy its content into a file.",
        )
        return
    if suffix in UNREADABLE:
        raise DataError(
            f"A {suffix} file cannot be read as text.",
            where=visible_line(path),
            hint="Unpack or convert it to text, JSONL, CSV or Parquet, and give the file or its folder.",
        )
    file = Input.of_file(path, name)
    reading.budget.open(file.size)
    if suffix != ".zip":
        yield from _read_input(file, reading)
        return
    try:
        with open_zip(path, name) as members:
            read = [member for member in members if _is_readable(member.suffix)]
            kept, note = splits.choose_split([member.name for member in read], reading.split)
            if note:
                reading.omissions.note(note)
            for member in read if read else members:
                if not read or member.name in kept:
                    yield from _read_input(member, reading)
    except DAMAGE as error:
        file.report(reading, error, file.where)


def _read_input(file: Input, reading: Reading) -> Iterator[Document]:
    before = sum(reading.omissions.counts.values())
    if 0 < file.size < 1000 and _is_lfs_pointer(file):
        reading.omissions.add(
            "Git LFS pointer",
            "The file's content was not downloaded: this is a Git LFS pointer to it.",
            where=file.where,
            hint="Run `git lfs pull` in the repository.",
        )
        return
    empty = True
    reader = _reader_of(file)
    if reading.min_score is not None and reader not in (json_files.read_jsonl, xml_dumps.read_xml):
        raise UserError(
            f"min_score={reading.min_score} has no meaning for this file.",
            where=file.where,
            hint="Dumps of Reddit and StackExchange and JSON Lines with a number 'score' have one.",
        )
    for document in reader(file, reading):
        empty = False
        yield document
    if empty and sum(reading.omissions.counts.values()) == before:
        reading.omissions.add(
            "empty file", "The file has no text.", where=file.where, hint="Remove it or give another file."
        )


def _reader_of(file: Input) -> Reader:
    """Return what reads a file, by its suffix; dumps of Reddit have none (RC_2019-01.zst), but lines of JSON."""
    if file.suffix in TABLES:
        return TABLES[file.suffix]
    if file.packed and not file.suffix:
        try:
            with file.open() as packed, UNPACKERS[file.packed](packed) as content:
                if content.read(1) == b"{":
                    return json_files.read_jsonl
        except DAMAGE:
            pass  # reading it says what is wrong
    return text_files.read_text


def _is_lfs_pointer(file: Input) -> bool:
    try:
        with file.open() as content:
            return content.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False  # reading it says what is wrong
