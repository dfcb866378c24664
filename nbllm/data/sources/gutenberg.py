"""Project Gutenberg's books: the licence before and behind the book is left out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

LOOKED_AT = 600  # lines in which the book must have begun
_START = re.compile(
    r"\s{0,3}\*{3}\s?START OF (?:THE|THIS) PROJECT GUTENBERG|\s{0,3}\*END\*?\s?THE SMALL PRINT", re.IGNORECASE
)
_END = re.compile(
    r"\s{0,3}\*{3}\s?END OF (?:THE|THIS) PROJECT GUTENBERG|End of (?:the )?Project Gutenberg", re.IGNORECASE
)


def without_licence(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Yield the numbered lines of a text; of a book of Project Gutenberg only those between its marks."""
    lines = iter(lines)
    beginning = list(itertools.islice(lines, LOOKED_AT))
    starts = [place for place, (_, line) in enumerate(beginning) if _START.match(line)]
    if not starts:
        yield from beginning
        yield from lines
        return
    for number, line in itertools.chain(beginning[starts[-1] + 1 :], lines):
        if _END.match(line):
            return
        yield number, line


def is_book(text: str) -> bool:
    """Return whether a text has the mark at which a book of Project Gutenberg begins."""
    return any(_START.match(line) for line in text[: LOOKED_AT * 200].splitlines()[:LOOKED_AT])


def book(text: str) -> str:
    """Return a book of Project Gutenberg without its licence."""
    numbered = enumerate(text.splitlines(keepends=True), 1)
    return "".join(line for _, line in without_licence(numbered)).strip("\r\n") + "\n"
