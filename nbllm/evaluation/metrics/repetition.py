"""rep-n: how much a sample repeats itself."""

from __future__ import annotations

import dataclasses

from nbllm.core.config import check_positive
from nbllm.evaluation.columns import Array, Columns, Row
from nbllm.evaluation.metrics.base import METRICS, RatioOfSums
from nbllm.evaluation.metrics.samples import SampleMetric, ngrams
from nbllm.evaluation.metrics.words import unicode_words


@METRICS.register("repetition")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Repetition(SampleMetric, RatioOfSums):
    """The share of a text's n-grams that stood before in it, as the mean over texts that have any n-gram.

    Args:
        n: Words of an n-gram.

    Source: Welleck et al. 2020, arXiv:1908.04319, section 6 (seq-rep-n).
    """

    name = key = module = "repetition"
    label = "rep-n"
    note = "share of a text's n-grams that repeat"
    better = "lower"
    scale = (0.0, 1.0)
    columns = ("repeated", "has_ngrams")
    source = "Welleck et al. 2020, arXiv:1908.04319"

    n: int = 4

    def __post_init__(self) -> None:
        """Check the length."""
        check_positive(self, "n")

    def title(self, data: str) -> str:
        """Return the label with its length: "rep-4"."""
        return f"rep-{self.n} on {data}" if data else f"rep-{self.n}"

    def row(self, prediction: str) -> Row:
        """Return the share of n-grams of a text that repeat, and whether it has any."""
        every = ngrams(unicode_words(prediction), self.n)
        return {
            "repeated": 1 - len(set(every)) / len(every) if every else 0.0,
            "has_ngrams": float(bool(every)),
        }

    def terms(self, columns: Columns) -> tuple[Array, Array]:
        """Return the shares, and one for each text that has any n-gram."""
        return columns["repeated"], columns["has_ngrams"]
