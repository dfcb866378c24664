"""Data frames, tables and rows that are already in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nbllm.data.sources.arrow_files import table_documents
from nbllm.data.sources.columns import ColumnChoice, make_document
from nbllm.data.sources.documents import Document
from nbllm.data.sources.reading import Reading


def is_frame(source: object) -> bool:
    """Return whether an object is a table or a column of one: of pandas, polars, pyarrow, DuckDB, ..."""
    return hasattr(source, "__arrow_c_stream__") or _is_lazy(source)


def frame_documents(frame: Any, reading: Reading) -> Iterator[Document]:
    """Yield one document a row of a data frame, or an entry of a column.

    Source: The Arrow PyCapsule interface, which such libraries share,
        https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html
    """
    import pyarrow as pa

    if _is_lazy(frame):
        frame = frame.collect()
    pandas = type(frame).__module__.partition(".")[0] == "pandas"
    if hasattr(frame, "to_frame"):  # a column (Series) of pandas or polars
        frame = frame.rename("text").to_frame()
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False) if pandas else pa.table(frame)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # a column of pandas may hold values of several types
        yield from row_documents(frame.to_dict("records"), reading, "the table")
        return
    yield from table_documents(table, reading)


def row_documents(rows: Sequence[Any], reading: Reading, title: str) -> Iterator[Document]:
    """Yield the documents of rows (mappings), of conversations or of texts."""
    choice = ColumnChoice(reading.column, reading.omissions, title)
    for number, row in enumerate(rows):
        where = f"entry {number} of {title}"
        if isinstance(row, Mapping):
            document = choice.document(row, str(number), where)
        else:
            document = make_document(row, reading.column or "text", str(number), where, reading.omissions)
        if document is not None:
            yield document


def _is_lazy(source: object) -> bool:
    return type(source).__module__.startswith("polars") and hasattr(source, "collect")
