"""Parquet, Arrow and Feather files, and Arrow tables from other libraries: one document a row."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import numpy as np

from nbllm.core.errors import DataError
from nbllm.data.sources.arrow_messages import FILE_MAGIC, unpacked_sizes
from nbllm.data.sources.budget import Budget, LimitReachedError
from nbllm.data.sources.chats import COLUMNS
from nbllm.data.sources.columns import ColumnChoice
from nbllm.data.sources.documents import Document
from nbllm.data.sources.inputs import DAMAGE, Input
from nbllm.data.sources.reading import Reading

ROWS = 4096  # decoded at once, at most
SLICE = 256  # turned into Python values at once
BATCH_BYTES = 1 << 24  # about so much text
INDEX_BYTES = 4  # of an entry that stands for one of a dictionary's
ROW_BYTES = 16  # a row costs about so much even where its text is empty


def read_parquet(file: Input, reading: Reading) -> Iterator[Document]:
    """Yield one document a row."""
    import pyarrow.parquet as pq

    with _arrow_errors(file, reading, "Parquet"), _seekable(file, reading) as stream:
        if stream is None:
            return
        choice = ColumnChoice(reading.column, reading.omissions, file.name)
        with pq.ParquetFile(stream) as table:
            name = _choose(choice, table.schema_arrow, file.where)
            if name is None:
                return
            leaves = [
                i for i in range(len(table.schema)) if table.schema.column(i).path.split(".")[0] == name
            ]
            texts = [leaf for leaf in leaves if table.schema.column(leaf).physical_type == "BYTE_ARRAY"]
        # Dictionaries stay dictionaries: a page of a few bytes may stand for gigabytes of one text.
        with pq.ParquetFile(stream, read_dictionary=texts) as table:
            groups = [table.metadata.row_group(group) for group in range(table.num_row_groups)]
            columns = [[group.column(leaf) for leaf in leaves] for group in groups]
            sizes = [
                sum(max(0, c.total_uncompressed_size) + INDEX_BYTES * max(0, c.num_values) for c in chunks)
                for chunks in columns
            ]
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
        # A file is a stream with a table of contents, which is not needed and might contradict it.
        begin = len(FILE_MAGIC) if stream.read(len(FILE_MAGIC)) == FILE_MAGIC else 0
        stream.seek(begin)
        reading.budget.check(sum(unpacked_sizes(stream)))
        stream.seek(begin)
        opened = pa.ipc.open_stream(stream)
        choice = ColumnChoice(reading.column, reading.omissions, file.name)
        name = _choose(choice, opened.schema, file.where)
        if name is None:
            return
        place = opened.schema.get_field_index(name)
        yield from _documents((batch.column(place) for batch in opened), choice, file, reading)


def table_documents(table: Any, reading: Reading) -> Iterator[Document]:
    """Yield one document a row of a `pyarrow.Table`."""
    choice = ColumnChoice(reading.column, reading.omissions, "the table")
    name = _choose(choice, table.schema, "the table")
    if name is None:
        return
    values = _values(table.column(name).chunks, Budget(sys.maxsize))
    yield from _read(values, choice, "", lambda number: f"row {number} of the table", reading, first=0)


def _documents(
    chunks: Iterable[Any], choice: ColumnChoice, file: Input, reading: Reading
) -> Iterator[Document]:
    def where(number: int) -> str:
        return f"{file.where}, row {number}"

    checked = map(_checked, chunks)
    values = _values(checked, reading.budget)
    yield from _read(values, choice, f"{file.name}:", where, reading, first=1, spend=True)


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


def check_column(column: Any, where: str) -> None:
    """Check the buffers of a column of a data set.

    Raises:
        DataError: Its buffers contradict one another.
    """
    import pyarrow as pa

    try:
        for chunk in column.chunks:
            _checked(chunk)
    except pa.ArrowException as error:
        raise DataError(
            f"The data set is damaged: {error}", where=where, hint="Write or download it again."
        ) from error


def _checked(chunk: Any) -> Any:
    """Return a column of which every offset, length and index lies within its buffers.

    Raises:
        pyarrow.ArrowInvalid: One does not, or the type lets several entries share their bytes.
    """
    import pyarrow as pa

    if _shares(chunk.type):
        raise pa.ArrowInvalid(f"a column of type {chunk.type} is not read")
    if isinstance(chunk, pa.DictionaryArray):
        chunk.indices.validate(full=True)
        _as_bytes(chunk.dictionary).validate(full=True)
        pa.DictionaryArray.from_arrays(chunk.indices, _as_bytes(chunk.dictionary), safe=True)
    else:
        _as_bytes(chunk).validate(full=True)
    return chunk


def _as_bytes(chunk: Any) -> Any:
    """Return a column with bytes for texts: a text that is not UTF-8 spoils its row, not the file."""
    return chunk.view(_bytes_type(chunk.type))


def _bytes_type(kind: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_bytes_type(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_bytes_type(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_bytes_type(field.type)) for field in kind])
    texts = {
        pa.string(): pa.binary(),
        pa.large_string(): pa.large_binary(),
        pa.string_view(): pa.binary_view(),
    }
    return texts.get(kind, kind)


def _shares(kind: Any) -> bool:
    """Return whether the type lets few bytes stand for many entries; text is not stored in such types."""
    import pyarrow as pa

    types = pa.types
    if any(
        test(kind)
        for test in (
            types.is_list_view,
            types.is_large_list_view,
            types.is_run_end_encoded,
            types.is_union,
        )
    ):
        return True
    return any(_shares(kind.field(i).type) for i in range(kind.num_fields))


def _values(chunks: Iterable[Any], budget: Budget) -> Iterator[object]:
    """Yield the Python value of each entry; for a string that is not UTF-8, the error.

    Raises:
        LimitReachedError: The next values are larger than what is left of the budget.
    """
    import pyarrow as pa

    for chunk in chunks:
        if isinstance(chunk, pa.DictionaryArray):  # each text is made once, however often it is repeated
            used = chunk.indices.unique().drop_null()
            kinds = chunk.dictionary.take(used)
            if pa.types.is_string_view(kinds.type):
                budget.check(_unpacked_size(kinds))
            texts = dict(zip(used.to_pylist(), _plain(kinds), strict=True))
            for index in chunk.indices.to_pylist():
                yield texts.get(index)
        else:
            for start in range(0, len(chunk), SLICE):
                part = chunk.slice(start, SLICE)
                try:
                    budget.check(_unpacked_size(part))
                except LimitReachedError:  # somewhere in it: up to there it can be read
                    for row in range(len(part)):
                        budget.check(_unpacked_size(part.slice(row, 1)))
                        yield from _plain(part.slice(row, 1))
                else:
                    yield from _plain(part)


def _unpacked_size(values: Any) -> int:
    """Return about how many bytes a column's values have in Python."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind, size = values.type, ROW_BYTES * len(values)
    if isinstance(values, pa.DictionaryArray):
        sizes = pa.array(
            [_unpacked_size(values.dictionary.slice(i, 1)) for i in range(len(values.dictionary))]
        )
        return size + (pc.sum(sizes.cast(pa.int64()).take(values.indices)).as_py() or 0)
    if pa.types.is_string_view(kind):  # several may show the same bytes
        views = np.frombuffer(values.buffers()[1], np.int32).reshape(-1, 4)[values.offset :][: len(values)]
        return size + int(views[:, 0].clip(0).sum(dtype=np.int64))
    if isinstance(values, pa.StructArray):
        return size + sum(map(_unpacked_size, values.flatten()))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return size + _unpacked_size(values.flatten())
    return size + int(values.nbytes)


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
    """Return the chosen column; an example of each type stands for the values."""
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
    except (pa.ArrowException, *DAMAGE, MemoryError, UnicodeDecodeError) as error:  # a name that is not UTF-8
        if isinstance(error, OSError) and error.errno is not None:
            file.report(reading, error, file.where)
            return
        reading.omissions.add(
            f"damaged {kind} file",
            f"The file is not a whole {kind} file: {(str(error).strip().splitlines() or [''])[0]}",
            where=file.where,
            hint="Write or download it again.",
        )
