"""Bytes per token: how much text one token stands for."""

from __future__ import annotations

import math

from nbllm.evaluation.columns import Array, Columns
from nbllm.evaluation.metrics.base import METRICS, RatioOfSums


@METRICS.register("bytes_per_token")
class BytesPerToken(RatioOfSums):
    """UTF-8 bytes of text that a token stands for; a property of the tokenizer."""

    name = "bytes_per_token"
    label = "bytes per token"
    unit = "bytes"
    note = "of the tokenizer, not the model"
    better = ""
    scale = (0.0, math.inf)
    columns = ("num_bytes", "num_tokens")
    of_model = False

    def terms(self, columns: Columns) -> tuple[Array, Array]:
        """Return the bytes and the tokens of each document."""
        return columns["num_bytes"], columns["num_tokens"]
