"""JSON Lines, JSON, CSV, TSV and Parquet: one document a row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nbllm.data.sources.columns import accept_text, choose_column
from nbllm.data.sources.compression import OPENERS, read_whole
from nbllm.data.sources.documents import Document
from nbllm.data.sources.omissions import Omissions
from nbllm.data.sources.text_files import decoded_lines

MAX_FIELD = 1 << 30  # characters of one CSV field; the csv module's own limit is 131,072
ROWS = 1024


def read_jsonl(path: Path, name: str, column: str | None, omissions: Omissions) -> Iterator[Document]:
    """Yield one document a line; blank lines are none."""
    chosen: str | None = None
    for number, line in decoded_lines(path, omissions):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        parsed, record = _parse(line, where, omissions)
        if not parsed:
            continue
        if not isinstance(record, dict):
            _wrong_shape(f"Line {number} is {_kind(record)}, not an object", where, omissions)
            continue
        if chosen is None or chosen not in record:
            found = _column_of(record, chosen or column, where, omissions)
            if found is None:
                continue
            chosen = found
        text = accept_text(record[chosen], chosen, where=where, omissions=omissions)
        if text is not None:
            yield Document(text, f"{name}:{number}", where)


def read_json(path: Path, name: str, column: str | None, omissions: Omissions) -> Iterator[Document]:
    """Yield the documents of a list of objects or strings, or of an object of columns; or of JSON Lines."""
    data = read_whole(path, omissions)
    if data is None or not data.strip():
        return
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # several values: JSON Lines under another name
            yield from read_jsonl(path, name, column, omissions)
        else:
            _bad_json(error, f"{path}, line {error.lineno}, column {error.colno}", omissions)
        return
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        omissions.add(
            "invalid UTF-8",
            f"Byte 0x{data[error.start]:02x} of line {line} is not UTF-8.",
            where=f"{path}, line {line}",
            hint="Convert the file, for example: iconv -f LATIN1 -t UTF-8.",
        )
        return
    except (ValueError, RecursionError) as error:
        _bad_json(error, str(path), omissions)
        return
    yield from _json_rows(value, path, name, column, omissions)


def _json_rows(
    value: Any, path: Path, name: str, column: str | None, omissions: Omissions
) -> Iterator[Document]:
    if isinstance(value, dict) and value and all(isinstance(entry, list) for entry in value.values()):
        chosen = choose_column(list(value), _textual({k: v[:1] for k, v in value.items()}), column,
                               where=str(path), omissions=omissions)  # fmt: skip
        rows = [] if chosen is None else value[chosen]
    elif isinstance(value, dict):
        rows = [value]
    elif isinstance(value, list):
        rows = value
    else:
        _wrong_shape(f"The file holds {_kind(value)}, not a list or an object", str(path), omissions)
        return
    for number, row in enumerate(rows, 1):
        where = f"{path}, entry {number}"
        if isinstance(row, dict):
            found = _column_of(row, column, where, omissions)
            if found is None:
                continue
            row = accept_text(row[found], found, where=where, omissions=omissions)
        else:
            row = accept_text(row, column or "text", where=where, omissions=omissions)
        if row is not None:
            yield Document(row, f"{name}:{number}", where)


def read_csv(path: Path, name: str, column: str | None, omissions: Omissions) -> Iterator[Document]:
    """Yield one document a row; the first line names the columns; a quoted field may span lines."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD))  # process-wide, but only ever wider
    delimiter = "\t" if ".tsv" in [suffix.lower() for suffix in path.suffixes] else ","
    rows = csv.reader((line for _, line in decoded_lines(path, omissions)), delimiter=delimiter, strict=True)
    header = None
    place = 0
    while True:
        line = rows.line_num + 1
        where = f"{path}, line {line}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            hint = "Quote fields with separators or line ends, and double the quotes inside them."
            omissions.add("broken CSV row", f"The row is not CSV: {error}.", where=where, hint=hint)
            continue
        if row is None:
            return
        if not row:
            continue
        if header is None:
            header = row
            found = choose_column(header, header, column, where=where, omissions=omissions)
            if found is None:
                return
            place = header.index(found)
        elif len(row) != len(header):
            omissions.add(
                "broken CSV row",
                f"The row has {len(row)} fields; the header has {len(header)}.",
                where=where,
                hint="Quote fields with separators or line ends in them.",
            )
        else:
            yield Document(row[place], f"{name}:{line}", where)


def read_parquet(path: Path, name: str, column: str | None, omissions: Omissions) -> Iterator[Document]:
    """Yield one document a row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    packed = path.suffix.lower() in OPENERS
    data = read_whole(path, omissions) if packed else None
    if packed and data is None:
        return
    try:
        with pq.ParquetFile(io.BytesIO(data) if data is not None else path) as file:
            schema = file.schema_arrow
            textual = [field.name for field in schema if _is_string(field.type)]
            chosen = choose_column(schema.names, textual, column, where=str(path), omissions=omissions)
            if chosen is None:
                return
            number = 0
            for batch in file.iter_batches(ROWS, columns=[chosen]):
                for value in batch.column(0):
                    number += 1
                    where = f"{path}, row {number}"
                    text = accept_text(
                        _plain(value, where, omissions), chosen, where=where, omissions=omissions
                    )
                    if text is not None:
                        yield Document(text, f"{name}:{number}", where)
    except (pa.ArrowException, OSError) as error:
        omissions.add(
            "damaged Parquet file",
            f"The file is no whole Parquet file: {str(error).strip().splitlines()[0]}",
            where=str(path),
            hint="Write or download it again.",
        )


def _plain(value: Any, where: str, omissions: Omissions) -> object:
    """Return the Python value of an Arrow scalar; a string that is not UTF-8 counts as no text."""
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        omissions.add(
            "invalid UTF-8",
            f"A text is not UTF-8: {error.reason}.",
            where=where,
            hint="Write the file again as UTF-8.",
        )
        return None


def _is_string(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _textual(record: Mapping[str, Any]) -> list[str]:
    """Return the names whose value is text or begins with text."""
    return [
        name
        for name, value in record.items()
        if isinstance(value[0] if isinstance(value, list) and value else value, str)
    ]


def _column_of(record: Mapping[str, Any], wanted: str | None, where: str, omissions: Omissions) -> str | None:
    return choose_column(list(record), _textual(record), wanted, where=where, omissions=omissions)


def _parse(line: str, where: str, omissions: Omissions) -> tuple[bool, Any]:
    try:
        return True, json.loads(line)
    except json.JSONDecodeError as error:
        _bad_json(error, f"{where}, column {error.colno}", omissions)
    except (ValueError, RecursionError) as error:
        _bad_json(error, where, omissions)
    return False, None


def _bad_json(error: Exception, where: str, omissions: Omissions) -> None:
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    omissions.add("invalid JSON", f"This is not JSON: {reason}.", where=where, hint="Mend the line.")


def _wrong_shape(what: str, where: str, omissions: Omissions) -> None:
    omissions.add("no JSON object", f"{what}.", where=where, hint='Write each document as {"text": "..."}.')


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)
