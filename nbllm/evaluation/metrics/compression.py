"""A yardstick that people know: what a general-purpose compressor makes of the same text."""

from __future__ import annotations

import lzma
from collections.abc import Iterable


def xz_bits_per_byte(texts: Iterable[str]) -> float:
    """Return the bits that `xz -9` needs for a byte of the texts, compressed together as one file.

    The compressor learns from the text while it reads it and knows nothing before; a trained model comes with
    what it has learnt. Both predict the next symbol from those before.

    Raises:
        ValueError: There is no text.
    """
    data = b"".join(text.encode() for text in texts)
    if not data:
        raise ValueError("there is no text to compress")
    return 8 * len(lzma.compress(data, preset=9)) / len(data)
