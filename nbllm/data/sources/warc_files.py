"""Web archives: WARC, of which the pages' main text is taken, and WET, which holds text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from nbllm.core.errors import DataError
from nbllm.core.terminal import visible_line
from nbllm.data.sources.budget import LimitReachedError
from nbllm.data.sources.documents import Document
from nbllm.data.sources.html_pages import decode_page, main_text
from nbllm.data.sources.inputs import DAMAGE, MAX_DOCUMENT_BYTES, Input
from nbllm.data.sources.reading import Reading

PAGES = frozenset(("text/html", "application/xhtml+xml"))
OK = "200"


def read_warc(file: Input, reading: Reading) -> Iterator[Document]:
    """Yield the main text of each page that was answered with 200, plain texts, and the texts of a WET file.

    Records of other kinds and pages without a main text are counted in a note.
    """
    number = 0
    left: Counter[str] = Counter()
    try:
        with file.unpacked(reading) as content:
            for number, record in enumerate(_records(content), 1):
                text = _text(record, left)
                url = visible_line(
                    record.rec_headers.get_header("WARC-Target-URI") or f"{file.name}:{number}"
                )
                if getattr(record.raw_stream, "limit", 0):  # the reader ends silently inside a record
                    raise EOFError("a record ends too early")
                if text:
                    yield Document(text, url, f"{file.where}, record {number}")
    except LimitReachedError:
        raise
    except (*DAMAGE, _archive_error()) as error:
        if isinstance(error, DataError):
            raise
        reading.omissions.add(
            "damaged archive",
            f"The web archive is damaged: {error}.",
            where=f"{file.where}, after record {number}",
            hint="Download it again.",
        )
    if kinds := [f"{count:,} x {kind}" for kind, count in sorted(left.items()) if count]:
        reading.omissions.note(f"Of {file.name} were not used: {', '.join(kinds)}.")


def _records(content: Any) -> Iterator[Any]:
    try:
        from warcio.archiveiterator import ArchiveIterator
    except ImportError as error:
        raise DataError("warcio is not installed.", hint="pip install 'nbllm[web]'.") from error
    return ArchiveIterator(content)  # type: ignore[no-any-return]


def _archive_error() -> type[Exception]:
    try:
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError:
        return EOFError
    return ArchiveLoadFailed  # type: ignore[no-any-return]


def _text(record: Any, left: Counter[str]) -> str:
    """Return the text of a record; empty where it has none."""
    if record.rec_type == "conversion":
        return record.content_stream().read().decode(errors="replace").strip("\n")  # type: ignore[no-any-return]
    if record.rec_type not in ("response", "resource"):
        record.raw_stream.read()
        return ""
    headers = record.http_headers if record.rec_type == "response" else None
    kind = record.rec_headers.get_header("Content-Type") or ""
    if headers is not None:
        kind = headers.get_header("Content-Type") or ""
    elif record.rec_type == "response":  # not of the web
        kind = ""
    data = record.content_stream().read()
    record.raw_stream.read()
    media = kind.partition(";")[0].strip().lower()
    if (headers is not None and headers.get_statuscode() != OK) or media not in {*PAGES, "text/plain"}:
        left["no page" if media not in PAGES else "page that was not found"] += 1
        return ""
    if len(data) > MAX_DOCUMENT_BYTES:
        left["page that is too large"] += 1
        return ""
    page = decode_page(data, kind)
    if media == "text/plain":
        return page
    text = main_text(page, record.rec_headers.get_header("WARC-Target-URI"))
    left["page without a main text"] += not text
    return text
