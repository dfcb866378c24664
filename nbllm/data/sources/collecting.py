"""Gather documents into a data set: in memory while small, in a mapped Arrow file when large."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbllm.core.cache import cache_folder, make_folder, remove_abandoned, unwritable
from nbllm.core.errors import DataError
from nbllm.core.io import ASIDE
from nbllm.data.sources.documents import Document
from nbllm.data.sources.inputs import MAX_DOCUMENT_BYTES
from nbllm.data.sources.omissions import Omissions

if TYPE_CHECKING:
    from datasets import Dataset

GROUP_BYTES = 1 << 24  # text gathered before it becomes an Arrow batch
SPILL_BYTES = 1 << 28  # text held in memory at most; the rest goes to a file


def document_schema() -> Any:
    """Return the Arrow schema of documents."""
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    return pa.schema([("text", pa.string()), ("source", pa.string()), ("messages", pa.list_(message))])


def document_batch(documents: Sequence[Document]) -> Any:
    """Return documents as a `pyarrow.RecordBatch`."""
    import pyarrow as pa

    schema = document_schema()
    columns = [[getattr(row, name) for row in documents] for name in schema.names]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema=schema)


def document_bytes(document: Document, omissions: Omissions) -> int | None:
    """Return how many bytes of UTF-8 a document has; None where it is no Unicode text and is left out.

    Raises:
        DataError: It is too large.
    """
    try:
        size = len(document.text.encode())
        for message in document.messages or ():
            size += len(message["role"].encode()) + len(message["content"].encode())
    except UnicodeEncodeError as error:
        omissions.add(
            "lone surrogate",
            f"Character {error.start} is one half of a surrogate pair: no Unicode text.",
            where=document.where,
            hint="Fix the escape in the source.",
        )
        return None
    if size > MAX_DOCUMENT_BYTES:
        raise DataError(
            f"One document has {size:,} bytes; the most is {MAX_DOCUMENT_BYTES:,}.",
            where=document.where,
            hint="Cut it into documents: sample_by='paragraph'.",
        )
    return size


class Collector:
    """Gathers documents batch by batch.

    Args:
        spill_bytes: Text beyond this many bytes is kept in a file of the cache folder, which is mapped, and
            deleted when Python ends.
    """

    def __init__(self, spill_bytes: int = SPILL_BYTES) -> None:
        self._schema = document_schema()
        self._has_messages = False
        self._spill_bytes = spill_bytes
        self._batches: list[Any] = []
        self._rows: list[Document] = []
        self._row_bytes = self._batch_bytes = 0
        self._writer: Any = None
        self._file: Path | None = None

    def collect(self, documents: Iterator[Document], omissions: Omissions) -> Dataset:
        """Return all documents as a data set with the columns `text` and `source`, and `messages` where there are any.

        On any error what was written to the disk is deleted at once.
        """
        try:
            try:
                for document in documents:
                    self._add(document, omissions)
                self._flush()
            finally:
                if self._writer is not None:
                    self._writer.close()
        except BaseException:
            if self._file is not None:
                shutil.rmtree(self._file.parent, ignore_errors=True)
            raise
        return self._dataset()

    def _add(self, document: Document, omissions: Omissions) -> None:
        size = document_bytes(document, omissions)
        if size is None:
            return
        if self._row_bytes + size > GROUP_BYTES:
            self._flush()
        self._has_messages = self._has_messages or document.messages is not None
        self._rows.append(document)
        self._row_bytes += size

    def _flush(self) -> None:
        if not self._rows:
            return
        batch = document_batch(self._rows)
        self._batch_bytes += self._row_bytes
        self._rows, self._row_bytes = [], 0
        if self._writer is None and self._batch_bytes > self._spill_bytes:
            self._open_file()
        self._store(batch)

    def _store(self, batch: Any) -> None:
        if self._writer is None:
            self._batches.append(batch)
            return
        try:
            self._writer.write_batch(batch)
        except OSError as error:
            raise unwritable(cache_folder(), error) from error

    def _open_file(self) -> None:
        import pyarrow as pa

        folder = make_folder(cache_folder() / "texts")
        remove_abandoned(folder)
        try:
            own = Path(tempfile.mkdtemp(prefix=ASIDE, dir=folder))
            atexit.register(shutil.rmtree, own, ignore_errors=True)
            self._file = own / "text.arrow"
            self._writer = pa.ipc.new_stream(str(self._file), self._schema)
        except OSError as error:
            raise unwritable(folder, error) from error
        earlier, self._batches = self._batches, []
        for batch in earlier:
            self._store(batch)

    def _dataset(self) -> Dataset:
        import pyarrow as pa
        from datasets import Dataset

        if self._file is not None:
            dataset = Dataset.from_file(str(self._file))
        else:
            dataset = Dataset(pa.Table.from_batches(self._batches, self._schema))
        return dataset if self._has_messages else dataset.remove_columns("messages")
