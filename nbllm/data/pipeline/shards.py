"""The input of a pipeline: files or a data set, cut into units of work, with an id for every document."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nbllm.core.errors import DataError, UserError, nearest
from nbllm.core.io import sha256_file
from nbllm.core.terminal import visible_line
from nbllm.data.pipeline.applying import ID, TEXT, TOKENS
from nbllm.data.pipeline.finishing import MANIFEST
from nbllm.data.pipeline.prepared import Prepared
from nbllm.data.sources.budget import Budget
from nbllm.data.sources.collecting import document_batch, document_bytes
from nbllm.data.sources.files import list_files, read_files
from nbllm.data.sources.inputs import DAMAGE
from nbllm.data.sources.loading import check_settings, load
from nbllm.data.sources.omissions import Omissions
from nbllm.data.sources.paths import paths_of, paths_of_list
from nbllm.data.sources.reading import Reading
from nbllm.data.texts import as_dataset

if TYPE_CHECKING:
    from datasets import Dataset

    from nbllm.data.sources.documents import Document

Advance = Callable[[int], object]
ROW_BITS = 24  # of an id: the place of a document in its file; the bits above name the file
ROW_BYTES = 64  # a row costs about so much, even where its text is empty
BATCH_ROWS = 2048
BATCH_BYTES = 1 << 21  # of text that goes through the steps at once, where no document is longer


@dataclasses.dataclass(frozen=True)
class Shard:
    """One input file.

    Attributes:
        path: Where it lies.
        name: What it is called: its path within the folder that was given.
        first_id: The id of its first document; the next ones follow.
        most_documents: More would run into the ids of another file.
        bytes: Its size on the disk.
        sha256: Of its content.
    """

    path: str
    name: str
    first_id: int
    most_documents: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class FilesUnit:
    """Files that are read one after another: a large one, or several small ones.

    Attributes:
        index: Its place among all units.
        shards: The files.
        settings: Of `nbllm.data.sources.reading.Reading`.
    """

    index: int
    shards: tuple[Shard, ...]

    settings: Mapping[str, Any]

    @property
    def bytes(self) -> int:
        """Size of the files on the disk."""
        return sum(shard.bytes for shard in self.shards)

    def read(self, omissions: Omissions, advance: Advance) -> Iterator[pa.Table]:
        """Yield the documents in batches, with the columns `document_id`, `text`, `source` and `messages`.

        Args:
            omissions: Told what cannot be read.
            advance: Told how many bytes of the files were read.

        Raises:
            DataError: A file cannot be read, and is not to be left out.
        """
        rows: list[Document] = []
        ids: list[int] = []
        size = 0
        for number, document in _documents(self, omissions, advance):
            count = document_bytes(document, omissions)
            if count is None:
                continue
            if rows and (len(rows) == BATCH_ROWS or size + count > BATCH_BYTES):
                yield _batch(ids, rows)
                rows, ids, size = [], [], 0
            rows.append(document)
            ids.append(number)
            size += count
        if rows:
            yield _batch(ids, rows)


class Unit(Protocol):
    """A piece of the input that is read from its beginning to its end, by one thread."""

    @property
    def index(self) -> int:
        """Its place among all units."""
        ...

    @property
    def bytes(self) -> int:
        """How large it is, for showing progress."""
        ...

    def read(self, omissions: Omissions, advance: Advance) -> Iterator[pa.Table]:
        """Yield its documents in batches, with `document_id`, `text` and other columns: always the same batches."""
        ...


@dataclasses.dataclass(frozen=True)
class DatasetUnit:
    """A whole data set, in memory or mapped."""

    index: int
    dataset: Dataset

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return int(self.dataset.data.nbytes)

    def read(self, omissions: Omissions, advance: Advance) -> Iterator[pa.Table]:
        """Yield the rows with all their columns."""
        for batch in read_dataset(self.dataset):
            advance(batch.nbytes)
            yield batch


@dataclasses.dataclass(frozen=True)
class StoredUnit:
    """Batches in an Arrow stream file, whose checksum names it."""

    index: int
    path: str

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return os.path.getsize(self.path)

    def read(self, omissions: Omissions, advance: Advance) -> Iterator[pa.Table]:
        """Yield the batches as they were written."""
        with pa.memory_map(self.path) as source:
            for batch in pa.ipc.open_stream(source):
                advance(batch.nbytes)
                yield pa.Table.from_batches([batch])


def first_ids(names: Sequence[str]) -> dict[str, int]:
    """Return for each name of a file the id of its first document: a hash of the name, so that it stays the same.

    It has 39 + 24 bits: a file may have more than 2^24 documents, where no other one's ids follow closely.
    """
    taken: dict[int, str] = {}
    for name in sorted(names):
        salt = 0
        while True:
            data = f"{name}\0{salt}".encode(errors="surrogateescape")
            place = int.from_bytes(hashlib.sha256(data).digest()[:8], "little") >> (64 - 63 + ROW_BITS)
            if place not in taken:
                break
            salt += 1
        taken[place] = name
    return {name: place << ROW_BITS for place, name in taken.items()}


def find_files(source: Any, reading: Reading) -> list[tuple[Path, str]] | None:
    """Return the files that a source means; None where it is something else than files.

    Raises:
        DataError: Two files have the same name.
    """
    if isinstance(source, list | tuple):
        paths = paths_of_list(source)
    elif isinstance(source, str | os.PathLike):
        paths = paths_of(source)
    else:
        paths = []
    if not paths or (len(paths) == 1 and _is_saved(paths[0][0])):
        return None
    check_settings(paths, reading)
    files = sorted(list_files(paths, reading), key=lambda file: file[1])
    for (path, name), (other, next_name) in itertools.pairwise(files):
        if name == next_name:
            raise DataError(
                f"Two files are called {visible_line(name)!r}.",
                where=f"{visible_line(path)}, {visible_line(other)}",
                hint="Give the folder that both lie in: documents are told apart by their file's name.",
            )
    return files


def _is_saved(folder: Path) -> bool:
    """Return whether a folder is a saved data set, or what a pipeline has written: `load` keeps its columns."""
    if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return True
    return (folder / MANIFEST).is_file() and Prepared.open(folder) is not None


def make_units(
    files: Sequence[tuple[Path, str]], unit_bytes: int, settings: Mapping[str, Any], known: dict[str, str]
) -> list[FilesUnit]:
    """Gather files into units, and take their checksums.

    Files come in the order of their ids, which are hashes of their names: so ids ascend over the whole corpus.

    Args:
        files: Path and name of each.
        unit_bytes: Small files are gathered until they have so many bytes.
        settings: Of `nbllm.data.sources.reading.Reading`.
        known: Checksums taken before, by path, size and time of change; new ones are added.
    """
    firsts = first_ids([name for _, name in files])
    ordered = sorted(firsts.values())
    behind = dict(zip(ordered, [*ordered[1:], 1 << 63], strict=True))
    units: list[FilesUnit] = []
    gathered: list[Shard] = []
    for path, name in sorted(files, key=lambda file: firsts[file[1]]):
        try:
            stat = path.stat()
            key = repr((str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ino))
            if key not in known:
                known[key] = sha256_file(path)
        except OSError as error:
            raise DataError(
                f"The file cannot be read: {error.strerror or error}.",
                where=visible_line(path),
                hint="Check that it is a regular file that you may read.",
            ) from error
        first = firsts[name]
        gathered.append(Shard(str(path), name, first, behind[first] - first, stat.st_size, known[key]))
        if sum(shard.bytes for shard in gathered) >= unit_bytes:
            units.append(FilesUnit(len(units), tuple(gathered), settings))
            gathered = []
    if gathered:
        units.append(FilesUnit(len(units), tuple(gathered), settings))
    return units


def _documents(unit: FilesUnit, omissions: Omissions, advance: Advance) -> Iterator[tuple[int, Document]]:
    for shard in unit.shards:
        reading = Reading(omissions=omissions, budget=Budget(None), **unit.settings)
        documents = read_files([(Path(shard.path), shard.name)], reading)
        told = 0
        try:
            for row, document in enumerate(documents):
                if row >= shard.most_documents:
                    raise DataError(
                        "The file has too many documents.", where=shard.path, hint="Cut it into several."
                    )
                if reading.budget.position > told:
                    advance(reading.budget.position - told)
                    told = reading.budget.position
                yield shard.first_id + row, document
        except DAMAGE as error:
            raise DataError(f"The file cannot be read: {error}.", where=shard.path) from error
        advance(shard.bytes - told)


def _batch(ids: list[int], rows: list[Document]) -> pa.Table:
    table = pa.Table.from_batches([document_batch(rows)])
    return table.add_column(0, ID, pa.array(ids, pa.int64()))


def read_dataset(dataset: Dataset) -> Iterator[pa.Table]:
    """Yield the rows of a data set with a column `text` in batches, with all their columns and `document_id`."""
    (first,) = first_ids([""]).values()
    ours = [name for name in (ID, TOKENS) if name in dataset.column_names]  # of an earlier preparation
    rows = dataset.remove_columns(ours).with_format("arrow")
    for begin in range(0, len(dataset), BATCH_ROWS):
        table = rows[begin : begin + BATCH_ROWS]
        ids = np.arange(first + begin, first + begin + table.num_rows)
        table = table.add_column(0, ID, pa.array(ids))
        text = table[TEXT]
        if text.type != pa.string():
            place = table.column_names.index(TEXT)
            table = table.set_column(place, TEXT, text.cast(pa.binary()).cast(pa.string(), safe=False))
        yield from cut(table)


def cut(table: pa.Table) -> Iterator[pa.Table]:
    """Yield a table in parts of about `BATCH_BYTES` of text."""
    sizes = pc.fill_null(pc.binary_length(table[TEXT]), 0).to_numpy()
    begin, size = 0, 0
    for row, count in enumerate(sizes.tolist()):
        if row > begin and size + count > BATCH_BYTES:
            yield table.slice(begin, row - begin)
            begin, size = row, 0
        size += count
    if begin < table.num_rows:
        yield table.slice(begin)


def dataset_digest(dataset: Dataset) -> str:
    """Return the SHA-256 of the rows of a data set."""
    digest = hashlib.sha256(str(dataset.features.arrow_schema).encode())
    for table in read_dataset(dataset):
        for name in table.column_names:
            column = table[name]
            # As an Arrow stream: the same values have the same bytes, whatever they were sliced from.
            for batch in pa.table({name: column.combine_chunks()}).to_batches():
                digest.update(batch.serialize())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened input.

    Attributes:
        units: What it is read by.
        fingerprint: Names its content and how it is read.
        described: What the manifest says: name, bytes and SHA-256 of each file.
    """

    units: Sequence[Unit]
    fingerprint: str
    described: list[dict[str, Any]]

    @classmethod
    def open(cls, source: Any, settings: Mapping[str, Any], unit_bytes: int, known: dict[str, str]) -> Source:
        """Open files, or a data set, or anything else that `nbllm.data.load` takes.

        Args:
            source: The input.
            settings: Of `nbllm.data.sources.reading.Reading`.
            unit_bytes: Small files are gathered until they have so many bytes.
            known: Checksums taken before; new ones are added.

        Raises:
            DataError: It cannot be read.
            UserError: There is no such setting.
        """
        names = {field.name for field in dataclasses.fields(Reading)} - {"omissions", "budget"}
        for name in settings:
            if name not in names:
                raise UserError(f"There is no setting {name!r}.", hint=nearest(name, names))
        files = find_files(source, Reading(omissions=Omissions("raise"), **settings))
        if files is not None:
            units = make_units(files, unit_bytes, settings, known)
            described = [
                {"name": shard.name, "bytes": shard.bytes, "sha256": shard.sha256}
                for unit in units
                for shard in unit.shards
            ]
            return cls(units, _digest([described, dict(settings)]), described)
        if settings or not isinstance(getattr(source, "column_names", None), list):
            source = load(source, **settings)
        dataset = as_dataset(source)
        digest = dataset_digest(dataset)
        described = [{"name": "", "bytes": int(dataset.data.nbytes), "sha256": digest}]
        return cls([DatasetUnit(0, dataset)], digest, described)

    def stored(self, folder: Path, unit_bytes: int) -> Source:
        """Return the same input in files of `folder`, so that other processes can read it."""
        if not any(isinstance(unit, DatasetUnit) for unit in self.units):
            return self
        paths: list[Path] = []
        writer: Any = None
        size = 0
        for unit in self.units:
            for batch in unit.read(Omissions("raise"), lambda count: None):
                if writer is None:
                    paths.append(folder / f"input-{self.fingerprint[:16]}-{len(paths):05d}.arrow")
                    writer = pa.ipc.new_stream(str(paths[-1]), batch.schema)
                writer.write_table(batch.combine_chunks())
                size += text_bytes(batch)
                if size >= unit_bytes:
                    writer.close()
                    writer, size = None, 0
        if writer is not None:
            writer.close()
        units = [StoredUnit(index, str(path)) for index, path in enumerate(paths)]
        return dataclasses.replace(self, units=units)


def text_bytes(batch: pa.Table) -> int:
    """Return about how much a batch weighs when a part is filled: its text, and something for each row."""
    num_bytes: int = pc.sum(pc.binary_length(batch[TEXT])).as_py() or 0
    return num_bytes + ROW_BYTES * int(batch.num_rows)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
