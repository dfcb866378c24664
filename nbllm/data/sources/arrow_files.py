"""Parquet, Arrow and Feather files, and whatever else is an Arrow table: one document a row."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from nbllm.data.sources.chats import COLUMNS
from nbllm.data.sources.columns import ColumnChoice
from nbllm.data.sources.documents import Document
from nbllm.data.sources.inputs import DAMAGE, Input
from nbllm.data.sources.reading import Reading

ROWS = 4096  # decoded at once, at most
SLICE = 256  # turned into Python values at once
BATCH_BYTES = 1 << 24  # about so much text
ROW_BYTES = 16  # a row costs about so much even where its text is empty
FILE_MAGIC = b"ARROW1"


def read_parquet(file: Input, reading: Reading) -> Iterator[Document]:
    """Yield one document a row."""
    import pyarrow.parquet as pq

    with _arrow_errors(file, reading, "Parquet"), _seekable(file, reading) as stream:
        if stream is None:
            return
        choice = ColumnChoice(reading.column, reading.omissions, file.name)
        with pq.ParquetFile(stream) as table:
            schema = table.schema_arrow
        name = _choose(choice, schema, file.where)
        if name is None:
            return
        # Dictionaries stay dictionaries: a page of a few bytes may stand for gigabytes of one text.
        flat = not _is_nested(schema.field(name).type)
        with pq.ParquetFile(stream, read_dictionary=[name] if flat else None) as table:
            leaves = [
                i for i in range(len(table.schema)) if table.schema.column(i).path.split(".")[0] == name
            ]
            groups = [table.metadata.row_group(group) for group in range(table.num_row_groups)]
            sizes = [sum(group.column(leaf).total_uncompressed_size for leaf in leaves) for group in groups]
            for size in sizes:
                reading.budget.check(size)
            rows = max(1, min(ROWS, BATCH_BYTES * max(table.metadata.num_rows, 1) // max(sum(sizes), 1)))
            batches = table.iter_batches(rows, columns=[name])
            yield from _documents((batch.column(0) for batch in batches), choice, file, reading)


def read_arrow(file: Input, reading: Reading) -> Iterator[Document]:
    """Yield one document a row of an Arrow file or stream; Feather is another name for such a file."""
    import pyarrow as pa

    with _arrow_errors(file, reading, "Arrow"), _seekable(file, reading) as stream:
        if stream is None:
            return
        is_file = stream.read(len(FILE_MAGIC)) == FILE_MAGIC
        stream.seek(0)
        opened = pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream)
        choice = ColumnChoice(reading.column, reading.omissions, file.name)
        name = _choose(choice, opened.schema, file.where)
        if name is None:
            return
        place = opened.schema.get_field_index(name)
        batches = (opened.get_batch(i) for i in range(opened.num_record_batches)) if is_file else iter(opened)
        yield from _documents((batch.column(place) for batch in batches), choice, file, reading)


def table_documents(table: Any, reading: Reading) -> Iterator[Document]:
    """Yield one document a row of a `pyarrow.Table`."""
    choice = ColumnChoice(reading.column, reading.omissions, "the table")
    name = _choose(choice, table.schema, "the table")
    if name is None:
        return
    values = _values(table.column(name).chunks)
    yield from _read(values, choice, "", lambda number: f"row {number} of the table", reading, first=0)


def _documents(
    chunks: Iterable[Any], choice: ColumnChoice, file: Input, reading: Reading
) -> Iterator[Document]:
    def where(number: int) -> str:
        return f"{file.where}, row {number}"

    yield from _read(_values(chunks), choice, f"{file.name}:", where, reading, first=1, spend=True)


def _read(
    values: Iterator[object], choice: ColumnChoice, prefix: str, where: Callable[[int], str], reading: Reading,
    *, first: int, spend: bool = False,
) -> Iterator[Document]:  # fmt: skip
    assert choice.name is not None
    for number, value in enumerate(values, first):
        if isinstance(value, UnicodeDecodeError):
            reading.omissions.add(
                "invalid UTF-8",
                f"A text is not UTF-8: {value.reason}.",
                where=where(number),
                hint="Write the file again as UTF-8.",
            )
            continue
        document = choice.document({choice.name: value}, f"{prefix}{number}", where(number))
        if spend:
            reading.budget.spend(ROW_BYTES + (0 if document is None else len(document.text)))
        if document is not None:
            yield document


def _values(chunks: Iterable[Any]) -> Iterator[object]:
    """Yield the Python value of each entry; for a string that is not UTF-8, the error."""
    import pyarrow as pa

    for chunk in chunks:
        if isinstance(chunk, pa.DictionaryArray):  # each text is made once, however often it is repeated
            used = chunk.indices.unique().drop_null()
            texts = dict(zip(used.to_pylist(), _plain(chunk.dictionary.take(used)), strict=True))
            for index in chunk.indices.to_pylist():
                yield texts.get(index)
        else:
            for start in range(0, len(chunk), SLICE):
                yield from _plain(chunk.slice(start, SLICE))


def _plain(values: Any) -> Iterator[object]:
    try:
        yield from values.to_pylist()
        return
    except UnicodeDecodeError:
        pass
    for value in values:
        try:
            yield value.as_py()
        except UnicodeDecodeError as error:
            yield error


def _choose(choice: ColumnChoice, schema: Any, where: str) -> str | None:
    """Return the column, by the types of all: an example of a type stands for the values."""
    return choice.choose(schema.names, example_row(schema), where)


def example_row(schema: Any) -> dict[str, object]:
    """Return a row that stands for those of an Arrow schema when a column is chosen."""
    return {field.name: _example(field.name, field.type) for field in schema}


def _example(name: str, kind: Any) -> object:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "a text"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [_example(name, kind.value_type)]
    if pa.types.is_struct(kind):
        return {field.name: _example(field.name, field.type) for field in kind}
    return [] if name in COLUMNS and pa.types.is_nested(kind) else None


def _is_nested(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_nested(kind))


@contextlib.contextmanager
def _seekable(file: Input, reading: Reading) -> Iterator[IO[bytes] | None]:
    """Open a file that is read at any place: unpacked in memory where it is packed; None where it is damaged."""
    if not file.packed and not file.member:
        with file.open() as stream:
            yield stream
        return
    data = file.read(reading)
    yield None if data is None else io.BytesIO(data)


@contextlib.contextmanager
def _arrow_errors(file: Input, reading: Reading, kind: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, *DAMAGE, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            file.report(reading, error, file.where)
            return
        reading.omissions.add(
            f"damaged {kind} file",
            f"The file is not a whole {kind} file: {(str(error).strip().splitlines() or [''])[0]}",
            where=file.where,
            hint="Write or download it again.",
        )
