"""XML: the dumps of MediaWiki and StackExchange, read as a stream; any other XML file is text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any
from xml.parsers import expat

from nbllm.data.sources.documents import Document
from nbllm.data.sources.html_pages import plain_text
from nbllm.data.sources.inputs import DAMAGE, Input
from nbllm.data.sources.reading import Reading
from nbllm.data.sources.text_files import read_text
from nbllm.data.sources.wikitext import wikitext_to_text

BLOCK = 1 << 16
BEGINNING = 4096  # bytes in which the first element begins
ARTICLES = "0"  # the namespace of articles; others hold talk, templates, users
QUESTION, ANSWER = "1", "2"


def read_xml(file: Input, reading: Reading) -> Iterator[Document]:
    """Yield the articles of a MediaWiki dump, the posts of a StackExchange dump, or the file as text."""
    try:
        with file.unpacked(reading) as content:
            beginning = content.peek(BEGINNING)[:BEGINNING]
    except DAMAGE as error:
        file.report(reading, error, file.where)
        return
    if b"<mediawiki" in beginning:
        yield from _parsed(file, reading, _Wiki())
    elif b"<posts" in beginning:
        yield from _parsed(file, reading, _Posts(reading.min_score))
    else:
        yield from read_text(file, reading)


@dataclasses.dataclass
class _Found:
    """A document that a parser has completed."""

    text: str
    source: str


class _Handler:
    """Gathers documents from the events of a parser."""

    def __init__(self) -> None:
        self.found: list[_Found] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        """Take note that an element begins."""

    def end(self, name: str) -> None:
        """Take note that an element ends."""

    def data(self, text: str) -> None:
        """Take note of text within an element."""


class _Wiki(_Handler):
    """The last revision of each article, as plain text."""

    def __init__(self) -> None:
        super().__init__()
        self._page: dict[str, str] = {}
        self._open: list[str] | None = None

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "page":
            self._page = {}
        elif name == "redirect":
            self._page["redirect"] = attributes.get("title", "")
        elif name in ("title", "ns", "text"):
            self._open = []

    def data(self, text: str) -> None:
        if self._open is not None:
            self._open.append(text)

    def end(self, name: str) -> None:
        if name in ("title", "ns", "text") and self._open is not None:
            self._page[name], self._open = "".join(self._open), None
        if name == "page" and self._page.get("ns", ARTICLES) == ARTICLES and "redirect" not in self._page:
            text = wikitext_to_text(self._page.get("text", ""))
            if text:
                self.found.append(_Found(text, self._page.get("title", "")))


class _Posts(_Handler):
    """Questions, with their titles, and answers."""

    def __init__(self, min_score: int | None) -> None:
        super().__init__()
        self._min_score = min_score

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name != "row" or attributes.get("PostTypeId") not in (QUESTION, ANSWER):
            return
        score = attributes.get("Score", "0")
        if self._min_score is not None and int(score) < self._min_score:
            return
        parts = (attributes.get("Title", ""), plain_text(attributes.get("Body", "")))
        text = "\n\n".join(part for part in parts if part)
        if text:
            kind = "question" if attributes["PostTypeId"] == QUESTION else "answer"
            self.found.append(_Found(text, f"{kind} {attributes.get('Id', '')}"))


def _parsed(file: Input, reading: Reading, handler: _Handler) -> Iterator[Document]:
    """Feed a file to a parser, and yield what its handler finds."""
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = handler.start
    parser.EndElementHandler = handler.end
    parser.CharacterDataHandler = handler.data
    parser.EntityDeclHandler = _refuse
    try:
        with file.unpacked(reading) as content:
            while block := content.read(BLOCK):
                parser.Parse(block, False)
                yield from _documents(file, handler, parser.CurrentLineNumber)
            parser.Parse(b"", True)
        yield from _documents(file, handler, parser.CurrentLineNumber)
    except DAMAGE as error:
        yield from _documents(file, handler, parser.CurrentLineNumber)
        file.report(reading, error, f"{file.where}, after line {parser.CurrentLineNumber}")
    except (expat.ExpatError, ValueError) as error:
        yield from _documents(file, handler, parser.CurrentLineNumber)
        reading.omissions.add(
            "invalid XML",
            f"This is not XML: {error}.",
            where=f"{file.where}, line {parser.CurrentLineNumber}",
            hint="Download it again.",
        )


def _documents(file: Input, handler: _Handler, line: int) -> Iterator[Document]:
    found, handler.found = handler.found, []
    for document in found:
        yield Document(document.text, document.source, f"{file.where}, before line {line}, {document.source}")


def _refuse(*declaration: Any) -> None:
    """Refuse entities of a file's own: a few lines of them may stand for gigabytes."""
    raise ValueError("it declares entities")
