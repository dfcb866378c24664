"""distinct-n: how many of the n-grams of samples are different ones."""

from __future__ import annotations

import dataclasses

from nbllm.core.config import check_positive
from nbllm.evaluation.columns import Columns
from nbllm.evaluation.metrics.base import METRICS
from nbllm.evaluation.metrics.samples import SampleMetric, ngrams
from nbllm.evaluation.metrics.words import unicode_words


@METRICS.register("distinct_n")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DistinctN(SampleMetric):
    """Different n-grams of all texts together, divided by all their n-grams; not a number where there are none.

    It falls as texts are added, so compare equal numbers of texts. There is no interval: a text that is drawn twice
    would repeat all its n-grams.

    Args:
        n: Words of an n-gram.

    Source: Li et al. 2016, arXiv:1510.03055, section 5.2.
    """

    name = key = module = "distinct_n"
    label = "distinct-n"
    note = "share of n-grams that are different ones"
    better = "higher"
    scale = (0.0, 1.0)
    resampled = False
    source = "Li et al. 2016, arXiv:1510.03055"

    n: int = 2

    def __post_init__(self) -> None:
        """Check the length."""
        check_positive(self, "n")

    def title(self, data: str) -> str:
        """Return the label with its length: "distinct-2"."""
        return f"distinct-{self.n} on {data}" if data else f"distinct-{self.n}"

    def compute(self, columns: Columns) -> float:
        """Return the share over all texts."""
        every = [gram for text in columns["prediction"] for gram in ngrams(unicode_words(text), self.n)]
        return len(set(every)) / len(every) if every else float("nan")
