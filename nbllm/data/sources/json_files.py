"""JSON Lines and JSON: one document a row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from nbllm.data.sources.chats import is_conversation
from nbllm.data.sources.columns import TEXT_NAMES, ColumnChoice, make_document
from nbllm.data.sources.documents import Document
from nbllm.data.sources.inputs import Input
from nbllm.data.sources.omissions import Omissions
from nbllm.data.sources.reading import Reading
from nbllm.data.sources.reddit import is_reddit, post_text
from nbllm.data.sources.text_files import decoded_lines, encoding_of, report_undecodable


def read_jsonl(file: Input, reading: Reading) -> Iterator[Document]:
    """Yield one document a line; blank lines are skipped."""
    choice = ColumnChoice(reading.column, reading.omissions, file.name)
    for number, line in decoded_lines(file, reading):
        if not line.strip():
            continue
        where = f"{file.where}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            _bad_json(error, f"{where}, column {error.colno}", reading.omissions)
            continue
        except (ValueError, RecursionError) as error:
            _bad_json(error, where, reading.omissions)
            continue
        if not isinstance(record, dict):
            _wrong_shape(f"Line {number} is {_kind(record)}, not an object", where, reading.omissions)
            continue
        if reading.min_score is not None and not _scores(record, where, reading):
            continue
        if reading.column is None and is_reddit(record):
            text = post_text(record)
            document = None if text is None else Document(text, f"{file.name}:{number}", where)
        else:
            document = choice.document(record, f"{file.name}:{number}", where)
        if document is not None:
            yield document


def read_json(file: Input, reading: Reading) -> Iterator[Document]:
    """Yield the documents of a list of objects, texts or conversations; of an object that holds such a list.

    What pandas writes is read in every orientation; several values after one another are JSON Lines.
    """
    data = file.read(reading)
    if data is None or not data.strip():
        return
    encoding = encoding_of(data[:4], reading.encoding)
    try:
        value = json.loads(data.decode(encoding).removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # several values: JSON Lines under another name
            yield from read_jsonl(file, reading)
        else:
            _bad_json(error, f"{file.where}, line {error.lineno}, column {error.colno}", reading.omissions)
        return
    except UnicodeDecodeError as error:
        report_undecodable(file, reading, error, data.count(b"\n", 0, error.start) + 1)
        return
    except (ValueError, RecursionError) as error:
        _bad_json(error, file.where, reading.omissions)
        return
    del data
    rows = json_rows(value, reading.column)
    if rows is None:
        shape = f"The file holds {_kind(value)}, not a list or an object"
        _wrong_shape(shape, file.where, reading.omissions)
        return
    choice = ColumnChoice(reading.column, reading.omissions, file.name)
    for number, row in enumerate(rows, 1):
        source, where = f"{file.name}:{number}", f"{file.where}, entry {number}"
        if isinstance(row, dict):
            document = choice.document(row, source, where)
        else:
            document = make_document(row, reading.column or "text", source, where, reading.omissions)
        if document is not None:
            yield document


def json_rows(value: Any, column: str | None) -> list[Any] | None:
    """Return the rows of a JSON value: objects, texts or conversations; None where it has none.

    Args:
        value: What the file holds.
        column: The column asked for, if any: an object that has it is a row or a table, not an envelope.
    """
    if isinstance(value, list):
        # One conversation is a list too.
        return [value] if is_conversation(value) and column is None else value
    if not isinstance(value, dict):
        return None
    if _is_split(value):
        names = [str(name) for name in value["columns"]]
        return [
            dict(zip(names, row, strict=False)) if isinstance(row, list) else row for row in value["data"]
        ]
    if value and all(isinstance(entry, dict) for entry in value.values()):
        return _rows_of_objects(value)
    held = _enveloped(value, column)
    if held is not None:
        return held
    if value and all(isinstance(entry, list) and not is_conversation(entry) for entry in value.values()):
        return _transposed(value)
    return [value]


def _scores(record: Mapping[str, Any], where: str, reading: Reading) -> bool:
    """Return whether a row has the score that is asked for; a row without a score is an omission."""
    assert reading.min_score is not None
    score = record.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float):
        reading.omissions.add(
            "no score", "The row has no number 'score'.", where=where, hint="Leave out min_score."
        )
        return False
    return score >= reading.min_score


def _is_split(value: Mapping[str, Any]) -> bool:
    """Return whether an object is what pandas writes with orient="split"."""
    return set(value) <= {"columns", "index", "data"} and all(
        isinstance(value.get(name), list) for name in ("columns", "data")
    )


def _rows_of_objects(value: Mapping[str, Any]) -> list[Any]:
    """Return the rows of an object of objects: pandas' orient="columns" (its default), else orient="index"."""
    inner = [set(entry) for entry in value.values()]
    numbered = all(key.isdigit() for key in inner[0]) and inner[0]
    if numbered and all(keys == inner[0] for keys in inner) and not all(key.isdigit() for key in value):
        return _transposed({name: list(entry.values()) for name, entry in value.items()})
    return list(value.values())


def _enveloped(value: Mapping[str, Any], column: str | None) -> list[Any] | None:
    """Return the one list of rows that an object holds beside plain values: {"version": "1.1", "data": [...]}."""
    if column in value or any(isinstance(value.get(name), str) for name in TEXT_NAMES):
        return None
    lists = [
        entry
        for entry in value.values()
        if isinstance(entry, list) and entry and not is_conversation(entry)
        and (all(isinstance(row, dict) for row in entry) or all(is_conversation(row) for row in entry))
    ]  # fmt: skip
    return lists[0] if len(lists) == 1 else None


def _transposed(columns: Mapping[str, list[Any]]) -> list[Any]:
    """Return the rows of an object of columns; a short column has nothing in the last rows."""
    longest = max(map(len, columns.values()), default=0)
    return [
        {name: values[row] for name, values in columns.items() if row < len(values)} for row in range(longest)
    ]


def _bad_json(error: Exception, where: str, omissions: Omissions) -> None:
    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    omissions.add("invalid JSON", f"This is not JSON: {reason}.", where=where, hint="Fix the line.")


def _wrong_shape(what: str, where: str, omissions: Omissions) -> None:
    omissions.add("no JSON object", f"{what}.", where=where, hint='Write each document as {"text": "..."}.')


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)
