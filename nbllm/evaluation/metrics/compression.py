"""A familiar yardstick: how well a general-purpose compressor does on the same text."""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterable

from nbllm.evaluation.columns import Columns
from nbllm.evaluation.metrics.base import METRICS, Metric


@METRICS.register("xz_bits_per_byte")
class XzBitsPerByte(Metric):
    """Bits that `xz -9` needs for a byte of the same text."""

    name = "xz_bits_per_byte"
    label = "xz -9"
    unit = "bits per byte"
    note = "a general-purpose compressor, all documents as one file"
    better = ""
    scale = (0.0, math.inf)
    columns = ("text",)
    of_model = False
    resampled = False  # a document that is drawn twice would compress to nothing

    def title(self, data: str) -> str:
        """Return what was compressed: "xz -9 on pydocs"."""
        return super().title(data or "the same text")

    def compute(self, columns: Columns) -> float:
        """Return the bits per byte of all documents together."""
        return xz_bits_per_byte(columns["text"])


def xz_bits_per_byte(texts: Iterable[str]) -> float:
    """Return the bits that `xz -9` needs for a byte of the texts, compressed together as one file.

    The compressor learns from the text while it reads it and starts with no knowledge; a trained model brings what it
    has learnt. Both predict the next symbol from those before it.

    Raises:
        ValueError: There is no text.
    """
    data = b"".join(text.encode() for text in texts)
    if not data:
        raise ValueError("there is no text to compress")
    return 8 * len(lzma.compress(data, preset=9)) / len(data)
