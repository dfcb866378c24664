"""Parts: the files that one stretch of documents leaves behind at one stage, whole or absent."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from nbllm.core.errors import DataError
from nbllm.core.io import ASIDE, read_json, sync_directory, sync_file, write_json
from nbllm.data.pipeline.applying import Outcome
from nbllm.data.pipeline.counts import Amount, StepCount

GROUP_BYTES = 1 << 24  # about so much text becomes one row group
GROUP_ROWS = 1 << 16
MOST_RECORD_BYTES = 1 << 24
DATA, SIGNALS, LEDGER_PART, SCAN = "data.parquet", "signals.parquet", "ledger.parquet", "scan.arrow"


@dataclasses.dataclass(frozen=True)
class Part:
    """The record of a finished part.

    Attributes:
        name: "u00003-p0001": the second part of the fourth unit.
        counts: What each step did.
        sha256: Of each of its files, by the end of its name.
    """

    name: str
    counts: list[StepCount]
    sha256: dict[str, str]

    @property
    def entered(self) -> Amount:
        """What was read for it."""
        return self.counts[0].entered

    @property
    def left(self) -> Amount:
        """What its data are."""
        return self.counts[-1].left

    def file(self, folder: Path, kind: str) -> Path:
        """Return one of its files."""
        return folder / f"{self.name}.{kind}"

    @classmethod
    def find(cls, folder: Path, name: str, *, verify: bool = True) -> Self | None:
        """Return a part that was finished earlier and is still as it was written, else None.

        Args:
            folder: Of the stage.
            name: Of the part.
            verify: Whether to take the checksums of its files.
        """
        try:
            record = read_json(folder / f"{name}.json", MOST_RECORD_BYTES)
            counts = [StepCount.from_dict(count) for count in record.pop("counts")]
            part = cls(counts=counts, **record)
            for kind, digest in part.sha256.items() if verify else ():
                with open(part.file(folder, kind), "rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                        return None
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return part


class PartWriter:
    """Writes a part aside, batch by batch; `commit` gives the files their names, the record last.

    Args:
        folder: Of the stage.
        name: Of the part.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._writers: dict[str, _Table] = {}
        self._counts: list[StepCount] | None = None

    def add(self, outcome: Outcome, scan: pa.Table | None) -> None:
        """Append what became of a batch."""
        tables = {DATA: outcome.documents, SIGNALS: outcome.signals, LEDGER_PART: outcome.ledger}
        if scan is not None:
            tables[SCAN] = scan
        for kind, table in tables.items():
            if kind not in self._writers:
                self._writers[kind] = _Table(self._folder, kind, table.schema)
            self._writers[kind].add(table)
        mine = self._counts
        self._counts = (
            list(outcome.counts)
            if mine is None
            else [count + more for count, more in zip(mine, outcome.counts, strict=True)]
        )

    def commit(self) -> Part:
        """Finish the files and return the record."""
        sums = {}
        for kind, writer in self._writers.items():
            sums[kind] = writer.finish(self._folder / f"{self._name}.{kind}")
        sync_directory(self._folder)
        assert self._counts is not None
        part = Part(self._name, self._counts, sums)
        write_json(self._folder / f"{self._name}.json", dataclasses.asdict(part))
        return part

    def discard(self) -> None:
        """Remove what was written aside."""
        for writer in self._writers.values():
            writer.discard()


class _Table:
    """A Parquet or Arrow file that is written aside in row groups of some size."""

    def __init__(self, folder: Path, kind: str, schema: pa.Schema) -> None:
        self._aside = folder / f"{ASIDE}{uuid.uuid4().hex}"
        self._schema = schema
        self._waiting: list[pa.Table] = []
        self._bytes = self._rows = 0
        if kind.endswith(".arrow"):
            self._writer: Any = pa.ipc.new_stream(str(self._aside), schema)
        else:
            # One after another, so that the file is the same however many threads there are.
            self._writer = pq.ParquetWriter(str(self._aside), schema, compression="zstd", compression_level=3)

    def add(self, table: pa.Table) -> None:
        if table.schema != self._schema:  # a step that saw no document may not know its type
            table = table.cast(self._schema)
        self._waiting.append(table)
        self._bytes += table.nbytes
        self._rows += table.num_rows
        if self._bytes >= GROUP_BYTES or self._rows >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            table = pa.concat_tables(self._waiting)
            if isinstance(self._writer, pq.ParquetWriter):
                self._writer.write_table(table, row_group_size=max(table.num_rows, 1))
            else:
                self._writer.write_table(table.combine_chunks())
            self._waiting, self._bytes, self._rows = [], 0, 0

    def finish(self, path: Path) -> str:
        """Close the file, rename it to `path` and return its SHA-256."""
        self._flush()
        self._writer.close()
        sync_file(self._aside)
        with open(self._aside, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.replace(self._aside, path)
        return digest

    def discard(self) -> None:
        with contextlib.suppress(Exception):  # the disk is full: closing would write the rest
            self._writer.close()
        self._aside.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """A context in which an error of the disk is said in words.

    Raises:
        DataError: The disk is full, or cannot be written.
    """
    try:
        yield
    except OSError as error:
        full = error.errno == errno.ENOSPC or "No space left" in str(error)
        raise DataError(
            "The disk is full." if full else f"The output cannot be written: {error.strerror or error}.",
            where=folder,
            hint=("Free some space, and run again" if full else "See to it, and run again")
            + ": what was finished is not done again.",
        ) from error


def total(parts: Sequence[Part]) -> list[StepCount]:
    """Return the counts of all parts together."""
    counts = list(parts[0].counts)
    for part in parts[1:]:
        counts = [count + more for count, more in zip(counts, part.counts, strict=True)]
    return counts
