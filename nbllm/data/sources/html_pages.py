"""Web pages as text: the declared character set, and the main text without menus and footers."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from html.parser import HTMLParser

from nbllm.core.errors import DataError
from nbllm.data.sources.text_files import MARKS

PRESCAN = 1024  # bytes in which a page says its character set
_META = re.compile(rb"""<meta[^>]{0,300}?charset\s{0,9}=\s{0,9}["']?\s{0,9}([\w.:-]{1,40})""", re.IGNORECASE)
_PARAMETER = re.compile(r"""charset\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE)
# What pages call by these names is read by all browsers as Windows-1252.
_AS_WINDOWS = frozenset(("ascii", "us-ascii", "iso8859-1", "iso-8859-1", "latin-1", "latin1", "l1"))
# Character sets that browsers read; a guess of any other (of some old printer) is wrong.
_OF_PAGES = frozenset(
    "big5 cp1250 cp1251 cp1252 cp1253 cp1254 cp1255 cp1256 cp1257 cp1258 cp866 cp874 cp932 cp949 euc_jp euc_kr gb18030"
    " gb2312 gbk iso8859_2 iso8859_5 iso8859_7 iso8859_9 iso8859_15 koi8_r koi8_u mac_cyrillic shift_jis".split()
)
_BLOCKS = frozenset(
    "address article aside blockquote br dd div dl dt footer h1 h2 h3 h4 h5 h6 header hr li ol p pre section table"
    " td th tr ul".split()
)
_SILENT = frozenset(("script", "style", "template", "noscript"))


def decode_page(data: bytes, content_type: str = "") -> str:
    """Return a page as text.

    The first of these counts that decodes it: its byte-order mark, the header's character set, the one that the page
    declares, UTF-8, a guess by `trafilatura`, Windows-1252. What cannot be decoded becomes U+FFFD.

    Args:
        data: The page.
        content_type: The header that came with it: "text/html; charset=iso-8859-1".

    Source: WHATWG, Encoding Standard, and HTML 13.2.3.2, "Determining the character encoding".
    """
    for encoding in _encodings(data, content_type):
        try:
            return data.decode(encoding).removeprefix("\ufeff")
        except (UnicodeDecodeError, LookupError):
            continue
    return data.decode(errors="replace")


def _encodings(data: bytes, content_type: str) -> Iterator[str]:
    for mark, encoding in MARKS:
        if data.startswith(mark):
            yield encoding
    declared = [found[1] for found in (_PARAMETER.search(content_type),) if found]
    declared += [found[1].decode("ascii") for found in (_META.search(data[:PRESCAN]),) if found]
    yield from filter(None, map(_known, declared))
    yield "utf-8"
    try:
        from trafilatura.utils import detect_encoding
    except ImportError:
        return
    yield from (guess for guess in detect_encoding(data) if guess in _OF_PAGES)
    yield "cp1252"


def _known(name: str) -> str | None:
    """Return the codec of a declared character set; None where Python has none that makes text of bytes."""
    try:
        found = codecs.lookup(name)
        b"".decode(found.name)
    except (LookupError, ValueError):
        return None
    if name.lower() in _AS_WINDOWS or found.name in _AS_WINDOWS:
        return "cp1252"
    return found.name


def main_text(page: str, url: str | None = None) -> str:
    """Return the main text of a page, as `trafilatura` finds it; empty where there is none.

    Raises:
        DataError: `trafilatura` is not installed.
    """
    try:
        import trafilatura
    except ImportError as error:
        raise DataError("trafilatura is not installed.", hint="pip install 'nbllm[web]'.") from error
    if not page.strip():
        return ""
    text: str | None = trafilatura.extract(page, url=url, include_comments=False)
    return text or ""


def plain_text(fragment: str) -> str:
    """Return the text of a small piece of HTML, such as a post, all of it: a line for each paragraph, code as it is."""
    parser = _Text()
    parser.feed(fragment)
    parser.close()
    return parser.text()


class _Text(HTMLParser):
    """Gathers the text between tags."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._silent = self._verbatim = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _BLOCKS:
            self._parts.append("\n")
        self._silent += tag in _SILENT
        self._verbatim += tag == "pre"
        if tag == "li":
            self._parts.append("- ")

    def handle_endtag(self, tag: str) -> None:
        if tag in _BLOCKS:
            self._parts.append("\n")
        self._silent = max(0, self._silent - (tag in _SILENT))
        self._verbatim = max(0, self._verbatim - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self._parts.append(data if self._verbatim else re.sub(r"\s+", " ", data))

    def text(self) -> str:
        """Return what was gathered, with no more than one blank line between paragraphs."""
        lines = "".join(self._parts).split("\n")
        text = "\n".join(line.rstrip() for line in lines)
        return re.sub(r"\n{3,}", "\n\n", re.sub(r"\n +(?=\S)", _indented, text)).strip()


def _indented(found: re.Match[str]) -> str:
    """Keep the indentation of code; a single blank at the beginning of a line is a line break of the source."""
    return "\n" if len(found[0]) == 2 else found[0]
