"""What metrics of samples have in common: texts that a model wrote, compared with themselves and one another."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import ClassVar

from nbllm.evaluation.columns import Row
from nbllm.evaluation.metrics.base import PredictionMetric
from nbllm.evaluation.metrics.inputs import TEXT


class SampleMetric(PredictionMetric):
    """A metric of texts without references; their words are those of `unicode_words`."""

    inputs = MappingProxyType({"predictions": TEXT})
    columns: ClassVar[tuple[str, ...]] = ("prediction",)

    def row(self, prediction: str) -> Row:
        """Return the text."""
        return {"prediction": prediction}


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return the runs of n words, in their order."""
    return list(zip(*(words[start:] for start in range(n)), strict=False))
