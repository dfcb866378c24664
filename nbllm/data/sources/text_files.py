"""Plain text: one document a file, a paragraph or a line."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from nbllm.data.sources.compression import read_lines
from nbllm.data.sources.documents import Document
from nbllm.data.sources.omissions import Omissions

WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decoded_lines(path: Path, omissions: Omissions) -> Iterator[tuple[int, str]]:
    """Yield number (from 1) and text of each line, line ends as they are.

    A leading byte-order mark is dropped; a line that is not UTF-8 is an omission.
    """
    for number, raw in enumerate(read_lines(path, omissions), 1):
        line = raw
        if number == 1:
            if raw.startswith(WIDE_MARKS):
                omissions.add(
                    "UTF-16 file",
                    "The file is UTF-16, not UTF-8.",
                    where=str(path),
                    hint="Convert it: iconv -f UTF-16 -t UTF-8.",
                )
                return
            line = raw.removeprefix(codecs.BOM_UTF8)
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            omissions.add(
                "invalid UTF-8",
                f"Byte {error.start + 1} of line {number} (0x{line[error.start]:02x}) is not UTF-8.",
                where=f"{path}, line {number}",
                hint="Convert the file, for example: iconv -f LATIN1 -t UTF-8.",
            )


def read_text(path: Path, name: str, sample_by: str, omissions: Omissions) -> Iterator[Document]:
    """Yield the documents of a text file; blank lines part paragraphs, and blank documents are none."""
    if sample_by == "document":
        text = "".join(line for _, line in _text_lines(path, omissions))
        if text.strip():
            yield Document(text, name, str(path))
        return
    block: list[str] = []
    first = 1
    for number, line in _text_lines(path, omissions):
        if line.strip():
            first = first if block else number
            block.append(line)
        if block and (sample_by == "line" or not line.strip()):
            yield Document("".join(block).rstrip("\r\n"), f"{name}:{first}", f"{path}, line {first}")
            block = []
    if block:
        yield Document("".join(block).rstrip("\r\n"), f"{name}:{first}", f"{path}, line {first}")


def _text_lines(path: Path, omissions: Omissions) -> Iterator[tuple[int, str]]:
    for number, line in decoded_lines(path, omissions):
        if "\0" in line:
            omissions.add(
                "zero byte in text",
                f"Line {number} has a zero byte: this is not a text file.",
                where=f"{path}, line {number}",
                hint="Give a text, JSONL, JSON, CSV, TSV or Parquet file.",
            )
        else:
            yield number, line
