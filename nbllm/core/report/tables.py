"""The rows of a report's examples as one table: CSV for a spreadsheet, Parquet for a program."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import UserError
from nbllm.core.report.sections import Rows
from nbllm.core.report.values import Value
from nbllm.core.terminal import json_only

if TYPE_CHECKING:
    from nbllm.core.report.report import Report

# A spreadsheet takes a cell that begins with one of these for a formula, which may call programs.
# Source: OWASP, CSV Injection.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_LEADING = ("model", "task", "data", "example")


def to_csv(report: Report) -> bytes:
    """Return the rows of all examples as CSV in UTF-8, one line an example.

    A text that a spreadsheet would take for a formula has an apostrophe before it, which a spreadsheet hides. Several
    values in one cell are a JSON list.

    Raises:
        UserError: The report holds no rows.
    """
    names, rows = _examples(report)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")  # RFC 4180
    writer.writerow([_csv_cell(name) for name in names])
    for row in rows:
        writer.writerow([_csv_cell(row.get(name)) for name in names])
    return ("\ufeff" + out.getvalue()).encode("utf-8", "replace")  # the mark tells Excel that it is UTF-8


def _csv_cell(value: Value) -> Any:
    if isinstance(value, tuple):
        value = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA):
        return f"'{value}"
    return value


def to_parquet(report: Report) -> bytes:
    """Return the rows of all examples as Parquet, a column for each name; several values are a list.

    Where a column holds values of different types, as with columns that two tasks name alike, all are texts.

    Raises:
        UserError: The report holds no rows.
    """
    import pyarrow as pa
    import pyarrow.parquet

    names, rows = _examples(report)
    columns = {name: json_only([row.get(name) for row in rows]) for name in names}
    arrays = []
    for values in columns.values():
        try:
            arrays.append(pa.array(values))
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            arrays.append(pa.array([None if value is None else _as_text(value) for value in values]))
    out = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(arrays, names=list(columns)), out, compression="zstd")
    return out.getvalue()


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _examples(report: Report) -> tuple[list[str], list[dict[str, Value]]]:
    """Return the names of all columns, and the rows of all examples."""
    rows = list(_rows(report))
    if not rows:
        raise UserError(
            "The report holds no examples to save as a table.",
            hint="Save what nb.evaluate returned; .json, .html, .md and .pdf save any report.",
        )
    names = list(dict.fromkeys(name for row in rows for name in row))
    empty = {name for name in ("model", "data") if not any(row[name] for row in rows)}
    return [name for name in names if name not in empty], rows


def _rows(report: Report) -> Iterator[dict[str, Value]]:
    for section in report.sections:
        if not isinstance(section, Rows):
            continue
        columns = {
            f"{name}_" if name in _LEADING else name: values for name, values in section.columns.items()
        }
        for number, values in enumerate(zip(*columns.values(), strict=True), start=1):
            leading = (section.model, section.subject.task, section.subject.data, number)
            yield dict(zip((*_LEADING, *columns), (*leading, *values), strict=True))
