"""Plain text: one document a file, a paragraph or a line; and the lines that the tables are read from."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterable, Iterator

from nbllm.data.sources.documents import Document
from nbllm.data.sources.gutenberg import book, is_book, without_licence
from nbllm.data.sources.inputs import DAMAGE, Input
from nbllm.data.sources.reading import Reading

# UTF-32's little-endian mark begins with UTF-16's.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding_of(beginning: bytes, given: str | None) -> str:
    """Return the encoding of a text: what its byte-order mark says, else what was given, else UTF-8."""
    for mark, encoding in MARKS:
        if beginning.startswith(mark) and (given is None or encoding == "utf-8-sig"):
            return encoding
    return given or "utf-8"


def decoded_lines(file: Input, reading: Reading) -> Iterator[tuple[int, str]]:
    """Yield number (from 1) and text of each line, line ends as they are.

    A leading byte-order mark is dropped; a line that cannot be decoded is an omission.
    """
    number = 0
    try:
        with file.unpacked(reading) as content:
            encoding = encoding_of(content.peek(4)[:4], reading.encoding)
            for number, line in _decoded(content, encoding, file, reading):
                yield number, line.removeprefix("\ufeff") if number == 1 else line
    except DAMAGE as error:
        file.report(reading, error, f"{file.where}, after line {number}")


def read_text(file: Input, reading: Reading) -> Iterator[Document]:
    """Yield the documents of a text file; blank lines separate paragraphs, and blank documents are left out."""
    if reading.sample_by == "document":
        text = _whole(file, reading)
        if is_book(text):
            text = book(text)
            reading.omissions.note("Project Gutenberg's licence was left out.")
        if text.strip():
            yield Document(text, file.name, file.where)
        return
    block: list[str] = []
    first = 1
    for number, line in without_licence(_text_lines(decoded_lines(file, reading), file, reading)):
        if line.strip():
            first = first if block else number
            block.append(line)
        if block and (reading.sample_by == "line" or not line.strip()):
            yield _document(block, first, file)
            block = []
    if block:
        yield _document(block, first, file)


def report_undecodable(file: Input, reading: Reading, error: UnicodeDecodeError, line: int) -> None:
    """Say that a line is not in the encoding it should be in."""
    name = reading.encoding or "UTF-8"
    reading.omissions.add(
        f"invalid {name}",
        f"Byte {error.start + 1} of line {line} (0x{error.object[error.start]:02x}) is not {name}.",
        where=f"{file.where}, line {line}",
        # No encoding is proposed: Latin-1 and its like decode everything, mostly into nonsense.
        hint="Name the encoding that the file was written in: encoding='gb18030', encoding='cp1252', ...",
    )


def _decoded(
    content: io.BufferedIOBase, encoding: str, file: Input, reading: Reading
) -> Iterator[tuple[int, str]]:
    if (
        "\n".encode(encoding)[-1:] != b"\n" or len("\n".encode(encoding)) > 1
    ):  # lines do not end with one byte
        number = 0
        try:
            for number, line in enumerate(io.TextIOWrapper(content, encoding, newline="\n"), 1):  # type: ignore[type-var]
                yield number, line
        except UnicodeDecodeError as error:
            report_undecodable(file, reading, error, number + 1)
        return
    for number, raw in enumerate(content, 1):
        try:
            yield number, raw.decode("utf-8" if encoding == "utf-8-sig" else encoding)
        except UnicodeDecodeError as error:
            report_undecodable(file, reading, error, number)


def _whole(file: Input, reading: Reading) -> str:
    content = file.read(reading, partial=True) or b""
    encoding = encoding_of(content[:4], reading.encoding)
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
        if "\0" not in text:
            return text
    except UnicodeDecodeError:
        pass
    # Line by line, to say which one is bad, and to leave out no more than that.
    lines = _decoded(io.BytesIO(content), encoding, file, reading)
    return "".join(line for _, line in _text_lines(lines, file, reading)).removeprefix("\ufeff")


def _document(block: list[str], first: int, file: Input) -> Document:
    return Document("".join(block).rstrip("\r\n"), f"{file.name}:{first}", f"{file.where}, line {first}")


def _text_lines(lines: Iterable[tuple[int, str]], file: Input, reading: Reading) -> Iterator[tuple[int, str]]:
    for number, line in lines:
        if "\0" in line:
            reading.omissions.add(
                "zero byte in text",
                f"Line {number} has a zero byte: this is not a text file.",
                where=f"{file.where}, line {number}",
                hint="Give a text, JSONL, JSON, CSV, TSV, Parquet or Arrow file.",
            )
        else:
            yield number, line
