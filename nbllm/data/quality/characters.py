"""What kind each character of Unicode is, as two small arrays that the kernels look it up in."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import regex
from numpy.typing import NDArray

from nbllm.data.kernels import utf8

NUM_CHARACTERS, PAGE = 0x110000, 256

# The properties are those of the Unicode version that the package `regex` brings, so the same on every Python.
PROPERTIES = {
    # str.isspace: White_Space and the four separators of ASCII
    utf8.SPACE: r"[\p{White_Space}\x1c-\x1f]+",
    utf8.LETTER: r"\p{L}+",
    utf8.NUMBER: r"\p{N}+",
    # Composed and decomposed text must count the same: marks, and the vowels and finals of conjoining Hangul.
    utf8.EXTENDER: r"[\p{M}\u1160-\u11ff\ud7b0-\ud7ff]+",
    # Letters between which a line may be broken (ideographs, kana, the syllables of Brahmic scripts) or only by a
    # dictionary (Thai, Lao, Khmer, Myanmar): their scripts write no spaces between words. Source: UAX #14. So does
    # Tibetan, which parts syllables by a mark.
    utf8.UNSPACED: r"[[\p{lb=ID}\p{lb=CJ}\p{lb=SA}\p{lb=AK}\p{lb=AS}\p{lb=AP}\p{sc=Tibt}]&&[\p{L}\p{Nl}]]+",
    utf8.UPPER: r"\p{Lu}+",
    utf8.SENTENCE_END: r"\p{Sentence_Terminal}+",
    utf8.QUOTE: r"\p{Quotation_Mark}+",
    utf8.CLOSING: r"[\p{Quotation_Mark}\p{Pe}\p{Pf}]+",
    utf8.PLAIN: r"[^\p{P}\p{S}\p{C}]+",
    utf8.LINE_END: r"[\n-\r\x1c-\x1e\x85\u2028\u2029]+",
    utf8.DIGIT: r"\p{Nd}+",
}


class CharacterTable(NamedTuple):
    """The flags of character `c` are `flags[pages[c >> 8] * 256 + (c & 255)]`, of ASCII `flags[c]`: about 80 kB in all.

    Attributes:
        pages: uint16 (4352,), which block of `flags` each 256 characters have.
        flags: uint16 (blocks * 256,), the bits of `nbllm.data.kernels.utf8`.
    """

    pages: NDArray[np.uint16]
    flags: NDArray[np.uint16]


@functools.cache
def character_table() -> CharacterTable:
    """Return the table, which the first call makes in a tenth of a second."""
    every = np.arange(NUM_CHARACTERS, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    flags = np.zeros(NUM_CHARACTERS, np.uint16)
    for bit, pattern in PROPERTIES.items():
        for found in regex.finditer(pattern, every, flags=regex.V1):
            flags[slice(*found.span())] |= bit
    blocks = flags.reshape(-1, PAGE)
    _, first, of_page = np.unique(blocks, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)  # by first use: the block of ASCII is the first
    return CharacterTable(
        np.argsort(order)[of_page.reshape(-1)].astype(np.uint16), blocks[first[order]].reshape(-1)
    )
