"""Bits per byte: how well a model compresses text, independent of its tokenizer."""

from __future__ import annotations

import math

from nbllm.evaluation.columns import Array, Columns
from nbllm.evaluation.metrics.base import METRICS, RatioOfSums


@METRICS.register("bits_per_byte")
class BitsPerByte(RatioOfSums):
    """Bits that a model needs for a byte of text.

    Source: Gao et al. 2021, The Pile, arXiv:2101.00027, section 3.1.
    """

    name = "bits_per_byte"
    label = "bits per byte"
    unit = "bits"
    note = "bits that the model needs for a byte of text; lower is better, 8 is no compression"
    better = "lower"
    scale = (0.0, math.inf)
    source = "Gao et al. 2021, arXiv:2101.00027"
    columns = ("nats", "num_bytes")

    def terms(self, columns: Columns) -> tuple[Array, Array]:
        """Return the bits and the bytes of each document."""
        return columns["nats"] / math.log(2), columns["num_bytes"]
