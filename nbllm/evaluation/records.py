"""The records of a benchmark's files (JSON Lines, JSON, CSV, TSV, Parquet, also gzipped), each with where it stands."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nbllm.core.errors import DataError, listed, nearest

MAX_FIELD = 1 << 24  # characters of one CSV field; the csv module's own limit is 131,072
_LISTS = ("data", "Data", "examples", "questions", "rows")  # under which a JSON object holds its records


@dataclasses.dataclass(frozen=True)
class Record:
    """One record of a benchmark.

    Attributes:
        values: By column.
        where: Its place, for messages: "test.jsonl, line 7".
        named: Whether the file names its columns; a CSV file without a header does not.
        file: The file's name without suffixes; "" where it comes from no file.
    """

    values: Mapping[str, Any]
    where: str
    named: bool = True
    file: str = ""

    def __getitem__(self, name: str) -> Any:
        """Return a value.

        Raises:
            DataError: The record has no such column, or nothing in it.
        """
        if name not in self.values:
            have = [str(key) for key in self.values]
            raise DataError(f"There is no column {name!r}.", where=self.where, hint=nearest(name, have))
        value = self.values[name]
        if value is None:
            raise DataError(
                f"The column {name!r} is empty.", where=self.where, hint="Fill it, or leave the row out."
            )
        return value

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def text(self, name: str, *, may_be_empty: bool = False) -> str:
        """Return a text. "None", "NA" and the like are texts.

        Raises:
            DataError: It is missing or no text, or it is empty and must not be.
        """
        value = self[name]
        return "" if may_be_empty and value == "" else self._text(value, name)

    def texts(self, name: str) -> list[str]:
        """Return a list of texts that are not empty.

        Raises:
            DataError: It is missing, empty or no list of texts.
        """
        values = self[name]
        if not isinstance(values, (list, tuple)) or not values:
            raise DataError(
                f"The column {name!r} must be a list of texts, not {_kind(values)}.",
                where=self.where,
                hint="Give the file as published; a list that was written into CSV cannot be read back.",
            )
        return [self._text(value, name) for value in values]

    def inner(self, name: str) -> Record:
        """Return the record that a column holds, as {"text": [...], "label": [...]} in `choices` of ARC.

        Raises:
            DataError: It is missing or no record.
        """
        value = self[name]
        if not isinstance(value, Mapping):
            raise DataError(f"The column {name!r} must be an object, not {_kind(value)}.", where=self.where)
        return Record(value, f"{self.where}, {name}", file=self.file)

    def inners(self, name: str) -> list[Record]:
        """Return the records that a column holds a list of.

        Raises:
            DataError: It is missing or no list of records.
        """
        values = self[name]
        if not isinstance(values, (list, tuple)):
            raise DataError(f"The column {name!r} must be a list, not {_kind(values)}.", where=self.where)
        for value in values:
            if not isinstance(value, Mapping):
                raise DataError(
                    f"The column {name!r} must hold objects, not {_kind(value)}.", where=self.where
                )
        return [
            Record(value, f"{self.where}, {name} {number}", file=self.file)
            for number, value in enumerate(values, 1)
        ]

    def index(self, name: str, labels: Sequence[object]) -> int:
        """Return the place of the answer among its labels: of `("A", "B", "C", "D")` or `range(4)`.

        Raises:
            DataError: It is missing or none of them.
        """
        value = self[name]
        value = value.strip() if isinstance(value, str) else value
        wanted = [str(label) for label in labels]
        if isinstance(value, (bool, float)) or str(value) not in wanted:
            raise DataError(
                f"The column {name!r} is {value!r}; it must be one of {listed(wanted, quote=False)}.",
                where=self.where,
                hint="Give the file as published.",
            )
        return wanted.index(str(value))

    def label(self, name: str, names: Sequence[str]) -> int:
        """Return a label: its number, its name, or for two labels true or false.

        Raises:
            DataError: It is missing or none of them.
        """
        value = self[name]
        if isinstance(value, bool) and len(names) == 2:
            return int(value)
        words = [word.lower() for word in names]
        if isinstance(value, str) and value.strip().lower() in words:
            return words.index(value.strip().lower())
        return self.index(name, range(len(names)))

    def _text(self, value: object, name: str) -> str:
        if not isinstance(value, str) or not value.strip():
            what = "empty" if isinstance(value, str) else f"{_kind(value)}, not a text"
            raise DataError(
                f"The column {name!r} is {what}.", where=self.where, hint="Fill it, or leave the row out."
            )
        return value


def read_records(path: Path, columns: Sequence[str] = ()) -> list[Record]:
    """Return the records of a file.

    Args:
        path: Its suffix says what it is: .jsonl, .json, .csv, .tsv, .parquet, and .gz after the first four.
        columns: What the columns are where the first line of a CSV file does not name any of them.

    Raises:
        DataError: The file is not what its suffix says, not UTF-8, or has no record; file and line are named.
    """
    suffix = suffix_of(path)
    if suffix not in READERS:
        raise DataError(
            f"A file with the suffix {suffix or path.suffix!r} cannot be read as a benchmark.",
            where=path,
            hint=f"Known: {', '.join(READERS)}; all but .parquet also gzipped.",
        )
    try:
        records = list(READERS[suffix](path, tuple(columns)))
    except OSError as error:
        raise DataError(f"The file cannot be read: {error.strerror or error}.", where=path) from error
    if not records:
        raise DataError(
            "The file is empty: it has no record.", where=path, hint="Give the file as published."
        )
    return records


def suffix_of(path: Path) -> str:
    """Return the suffix that says how a file is written, without ".gz"."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix != ".gz"), "")


def stem_of(path: Path) -> str:
    """Return the name of a file without its suffixes for format and packing."""
    name = path.name
    for suffix in (".gz", suffix_of(path)):
        name = name[: -len(suffix)] if suffix and name.lower().endswith(suffix) else name
    return name


def text_of(path: Path) -> str:
    """Return the text of a file, which may be gzipped.

    Raises:
        DataError: It is not UTF-8, or not gzipped as its name says.
        OSError: It cannot be opened.
    """
    data = path.read_bytes()
    if path.suffix.lower() == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as error:
            raise DataError(f"The file is not gzipped: {error}.", where=path) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError("The file is not UTF-8.", where=f"{path}, line {line}", hint="Convert it.") from None


def _read_jsonl(path: Path, _: tuple[str, ...]) -> Iterator[Record]:
    for number, line in enumerate(text_of(path).split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield _object(_json(line, where), where, path)


def _read_json(path: Path, columns: tuple[str, ...]) -> Iterator[Record]:
    text = text_of(path)
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # JSON Lines under another name
            yield from _read_jsonl(path, columns)
            return
        raise DataError(f"This is not JSON: {error.msg}.", where=f"{path}, line {error.lineno}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"This is not JSON: {error}.", where=path) from None
    if isinstance(value, Mapping):
        key = next((name for name in _LISTS if isinstance(value.get(name), list)), None)
        value = [value] if key is None else value[key]
    if not isinstance(value, list):
        raise DataError(f"The file holds {_kind(value)}, not a list of records.", where=path)
    for number, entry in enumerate(value, 1):
        yield _object(entry, f"{path}, entry {number}", path)


def _json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"This is not JSON: {error.msg}.", where=where, hint="Fix the line.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"This is not JSON: {error}.", where=where, hint="Fix the line.") from None


def _object(value: object, where: str, path: Path) -> Record:
    if not isinstance(value, Mapping):
        raise DataError(f"This is {_kind(value)}, not an object with columns.", where=where)
    return Record(value, where, file=stem_of(path))


def _read_csv(path: Path, columns: tuple[str, ...]) -> Iterator[Record]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD))  # process-wide, but only ever wider
    dialect: dict[str, Any] = {"strict": True}
    if suffix_of(path) == ".tsv":  # as GLUE's are: a quote is an ordinary character
        dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    reader = csv.reader(io.StringIO(text_of(path), newline=""), **dialect)
    header: Sequence[str] | None = None
    names = {name.lower() for name in columns if len(name) > 1}  # "A" may be an answer
    named, line = True, 1
    try:
        for row in reader:
            where, line = f"{path}, line {line}", reader.line_num + 1
            if not row:
                continue
            if header is None:
                named = not names or any(cell.strip().lower() in names for cell in row)
                header = row if named else columns
                if named:
                    continue
            if len(row) != len(header):
                raise DataError(
                    f"The row has {len(row)} fields; there are {len(header)} columns.",
                    where=where,
                    hint="Quote fields that hold separators or line ends.",
                )
            yield Record(dict(zip(header, row, strict=True)), where, named, stem_of(path))
    except csv.Error as error:
        raise DataError(f"The row is not CSV: {error}.", where=f"{path}, line {line}") from None


def _read_parquet(path: Path, _: tuple[str, ...]) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"This is not Parquet: {error}.", where=path) from None
    for number, row in enumerate(rows, 1):
        yield Record(row, f"{path}, row {number}", file=stem_of(path))


def as_records(rows: Iterable[Any], name: str) -> list[Record]:
    """Return rows that are mappings already as records.

    Raises:
        DataError: One is no mapping.
    """
    out = []
    for number, row in enumerate(rows, 1):
        where = f"{name}, row {number}"
        if not isinstance(row, Mapping):
            raise DataError(f"This is {_kind(row)}, not a mapping with columns.", where=where)
        out.append(Record(row, where))
    return out


def _kind(value: object) -> str:
    names: dict[type, str] = {
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return "nothing" if value is None else names.get(type(value), f"of type {type(value).__name__}")


READERS: dict[str, Callable[[Path, tuple[str, ...]], Iterator[Record]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
