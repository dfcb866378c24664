"""CSV and TSV: one document a row; the first line names the columns."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator

from nbllm.data.sources.columns import ColumnChoice
from nbllm.data.sources.documents import Document
from nbllm.data.sources.inputs import Input
from nbllm.data.sources.reading import Reading
from nbllm.data.sources.text_files import decoded_lines

MAX_FIELD = 1 << 30  # characters of one field; the csv module's own limit is 131,072
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def read_csv(file: Input, reading: Reading) -> Iterator[Document]:
    """Yield one document a row; a quoted field may span lines.

    The delimiter is the tab of a .tsv file, else what the first line has. A line that is broken, such as by a
    quote that nothing closes, is left out alone: reading goes on with the next line. In a tab-separated file a
    quote may also be an ordinary character, as its standard has it.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD))  # process-wide, but only ever wider
    records = _Records(decoded_lines(file, reading), file, reading)
    choice = ColumnChoice(reading.column, reading.omissions, file.name)
    header = records.header()
    if header is None:
        return
    for line, row in records.rows(header):
        where = f"{file.where}, line {line}"
        if choice.name is None:
            choice.choose(header, dict(zip(header, row, strict=True)), f"{file.where}, line 1")
        if choice.name is None:
            return
        yield Document(row[header.index(choice.name)], f"{file.name}:{line}", where)


class _Records:
    """Reads records out of lines; lines that belong to no whole record are given back."""

    def __init__(self, lines: Iterator[tuple[int, str]], file: Input, reading: Reading) -> None:
        self._source, self._file, self._reading = lines, file, reading
        self._waiting: deque[tuple[int, str]] = deque()
        self._taken: list[tuple[int, str]] = []
        self._delimiter = ","

    def header(self) -> list[str] | None:
        """Return the names of the columns, and settle the delimiter; None for a file without a line."""
        for entry in self._source:
            if entry[1].strip():
                self._waiting.append(entry)
                break
        else:
            return None
        line = self._waiting[0][1]
        if self._file.suffix == ".tsv":
            self._delimiter = "\t"
        else:
            self._delimiter = _delimiter_of(line, self._reading.column or "text")
        if self._delimiter != "," and self._file.suffix != ".tsv":
            self._reading.omissions.note(
                f"The columns of {self._file.name} are separated by {DELIMITERS[self._delimiter]}."
            )
        return next((row for _, row in self._records(None)), None)

    def rows(self, header: list[str]) -> Iterator[tuple[int, list[str]]]:
        """Yield line number and fields of each row that has as many as the header."""
        for line, row in self._records(len(header)):
            if len(row) == len(header):
                yield line, row
            else:
                self._broken(
                    line,
                    f"The row has {len(row)} fields; the header has {len(header)}.",
                    "Quote fields with separators or line ends in them.",
                )

    def _records(self, width: int | None) -> Iterator[tuple[int, list[str]]]:
        reader = self._reader()
        while True:
            self._taken = []
            try:
                row = next(reader, None)
            except csv.Error as error:
                line, text = self._give_back()
                reader = self._reader()
                if width is None:  # the header: without it there are no columns
                    self._broken(line, f"The header is not CSV: {error}.", "Fix the first line.")
                    return
                if self._is_literal([(line, text)], width):
                    yield line, self._split(text)
                else:
                    hint = "Quote fields with separators or line ends, and double the quotes inside them."
                    self._broken(line, f"The row is not CSV: {error}.", hint)
                continue
            if row is None:
                return
            if len(self._taken) > 1 and self._is_literal(self._taken, width):
                line, text = self._give_back()
                reader = self._reader()
                row = self._split(text)
            else:
                line = self._taken[0][0]
            if row:
                yield line, row

    def _reader(self) -> Iterator[list[str]]:
        return csv.reader(iter(self._next_line, None), delimiter=self._delimiter, strict=True)

    def _next_line(self) -> str | None:
        entry = self._waiting.popleft() if self._waiting else next(self._source, None)
        if entry is None:
            return None
        self._taken.append(entry)
        return entry[1]

    def _give_back(self) -> tuple[int, str]:
        """Return the first line of the current record; the others will be read again."""
        self._waiting.extendleft(reversed(self._taken[1:]))
        return self._taken[0]

    def _is_literal(self, lines: list[tuple[int, str]], width: int | None) -> bool:
        """Return whether each line is a row by itself, its quotes ordinary characters."""
        return (
            self._delimiter == "\t"
            and width is not None
            and width > 1
            and all(len(self._split(line)) == width for _, line in lines)
        )

    def _split(self, line: str) -> list[str]:
        return [_unquoted(field) for field in line.rstrip("\r\n").split(self._delimiter)]

    def _broken(self, line: int, what: str, hint: str) -> None:
        self._reading.omissions.add(
            "broken CSV row", what, where=f"{self._file.where}, line {line}", hint=hint
        )


def _unquoted(field: str) -> str:
    if len(field) < 2 or not field.startswith('"') or not field.endswith('"'):
        return field
    inner = field[1:-1].replace('""', "")
    return field if '"' in inner else field[1:-1].replace('""', '"')


def _delimiter_of(line: str, wanted: str) -> str:
    """Return the delimiter of a header: one that makes the wanted column, else the most frequent."""
    fields = {sign: next(csv.reader([line], delimiter=sign), []) for sign in DELIMITERS}
    named = [sign for sign in DELIMITERS if wanted in fields[sign] and len(fields[sign]) > 1]
    return named[0] if named else max(DELIMITERS, key=lambda sign: len(fields[sign]))
