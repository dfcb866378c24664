r"""What each code point is for the comparison of texts: a table that the kernels read.

Words are maximal runs of letters, digits and `_`, as in Python's `\w`, with the marks that follow; everything else
separates them. In scripts that put no spaces between words each character, with its marks, stands alone. Case is
folded by `str.lower`, one code point to one (of "İ" the dot is left out).
"""

from __future__ import annotations

import functools
import sys
import unicodedata

import numpy as np
import regex
from numpy.typing import NDArray

from nbllm.data.arrow_text import Texts
from nbllm.data.kernels.code_points import (
    CHARACTER,
    COMBINES,
    COMPOSES,
    KIND_SHIFT,
    MARK,
    SPACE,
    WORD,
    mark_uncomposed,
)

TABLE_SIZE = 0x33480  # behind the last ideograph; what lies beyond (tags, private use) separates words
UNSPACED = (
    "Han Hiragana Katakana Bopomofo Yi Thai Lao Khmer Myanmar Tibetan Tai_Le New_Tai_Lue Tai_Tham Tai_Viet"
    " Balinese Javanese"
).split()


@functools.cache
def code_point_table() -> NDArray[np.uint32]:
    """Return the table of `kernels.code_points`, uint32 (code point,)."""
    points = [chr(point) for point in range(TABLE_SIZE)]
    text = "".join(point if not 0xD800 <= ord(point) < 0xE000 else " " for point in points)
    table = np.fromiter((ord(point.lower()[0]) for point in points), np.uint32, TABLE_SIZE)
    scripts = "".join(rf"\p{{Script={script}}}" for script in UNSPACED)
    kinds = np.zeros(TABLE_SIZE, np.uint32)
    kinds[_matching(r"[\w]", text)] = WORD
    kinds[_matching(rf"[[{scripts}\u30fc]&&[\p{{L}}\p{{N}}]]", text)] = CHARACTER
    kinds[_matching(r"\p{M}", text)] = MARK
    table |= kinds << KIND_SHIFT
    table[_matching(r"\s", text)] |= SPACE
    table[[unicodedata.combining(point) != 0 for point in points]] |= COMBINES
    table[_composing(points)] |= COMPOSES
    table.flags.writeable = False
    return table


def _matching(expression: str, text: str) -> list[int]:
    return [match.start() for match in regex.finditer(expression, text, flags=regex.V1)]


def _composing(points: list[str]) -> list[int]:
    """Return the code points whose NFC quick check is "no" or "maybe"."""
    found = {ord(point) for point in points if not unicodedata.is_normalized("NFC", point)}
    for point in map(chr, range(sys.maxunicode + 1)):
        parts = unicodedata.decomposition(point).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            found.add(int(parts[1], 16))
    found.update(range(0x1161, 0x1176), range(0x11A8, 0x11C3))  # vowels and finals of Hangul syllables
    return [point for point in found if point < TABLE_SIZE]


def composed(texts: Texts) -> Texts:
    """Return the texts in NFC: the same arrays where they are in it already, as almost all text is.

    In a text that has to be composed, bytes that are no UTF-8 become U+FFFD.
    """
    marked = np.empty(texts.num_documents, np.bool_)
    mark_uncomposed(*texts, code_point_table(), marked)
    if not marked.any():
        return texts
    parts = [
        _composed(text) if marked[i] else text
        for i, text in enumerate(map(texts.__getitem__, range(marked.size)))
    ]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    data = np.frombuffer(b"".join(parts), np.uint8)
    offsets.flags.writeable = False
    return Texts(data, offsets, texts.valid)


def _composed(text: bytes) -> bytes:
    return unicodedata.normalize("NFC", text.decode("utf-8", "replace")).encode()
