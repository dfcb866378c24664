"""Two texts side by side: which words each has that the other has not, in their order."""

from __future__ import annotations

import difflib
import re
from typing import TypeAlias

Segment: TypeAlias = tuple[str, bool]
"""A piece of a text, and whether it is marked."""

_WORD = re.compile(r"\s+|\w+|[^\w\s]")
MOST_WORDS = 2000  # of each text; the comparison's time grows with the square


def differing(one: str, other: str) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
    """Return both texts in pieces, those marked that the other has not."""
    first, second = (_WORD.findall(text)[:MOST_WORDS] for text in (one, other))
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    pieces: tuple[list[Segment], list[Segment]] = ([], [])
    for kind, start, stop, begin, end in matcher.get_opcodes():
        for words, made in ((first[start:stop], pieces[0]), (second[begin:end], pieces[1])):
            if words:
                made.append(("".join(words), kind != "equal"))
    return tuple(pieces[0]), tuple(pieces[1])
