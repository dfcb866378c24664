"""Self-BLEU: how much samples resemble one another."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import numpy as np

from nbllm.core.config import check_positive
from nbllm.core.errors import DataError
from nbllm.evaluation.columns import Columns
from nbllm.evaluation.metrics.base import METRICS
from nbllm.evaluation.metrics.samples import SampleMetric, ngrams
from nbllm.evaluation.metrics.words import unicode_words


@METRICS.register("self_bleu")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfBleu(SampleMetric):
    """The mean over texts of the BLEU of each with all the others as references: 100 where all are the same.

    Smoothed as sacrebleu's sentence BLEU. There is no interval: a text that is drawn twice would be its own reference.

    Args:
        max_order: The longest n-grams.

    Source: Zhu et al. 2018, arXiv:1802.01886, section 3.3.
    """

    name = key = module = "self_bleu"
    label = "self-BLEU"
    note = "mean BLEU of each text with the others as references"
    better = "lower"
    scale = (0.0, 100.0)
    resampled = False
    package = "sacrebleu"
    source = "Zhu et al. 2018, arXiv:1802.01886"

    max_order: int = 4

    def __post_init__(self) -> None:
        """Check the order."""
        check_positive(self, "max_order")

    def compute(self, columns: Columns) -> float:
        """Return the mean over the texts.

        Raises:
            DataError: There is one text.
        """
        texts = [unicode_words(text) for text in columns["prediction"]]
        if len(texts) < 2:
            raise DataError("One text has no others to resemble.", hint="Give at least two texts.")
        counts = [
            collections.Counter(gram for n in range(1, self.max_order + 1) for gram in ngrams(words, n))
            for words in texts
        ]
        limits = _Largest(counts)
        lengths = np.array([len(words) for words in texts])
        return float(np.mean([self._bleu(i, counts[i], limits, lengths) for i in range(len(texts))]))

    def _bleu(self, index: int, counts: collections.Counter[Any], limits: _Largest, lengths: Any) -> float:
        from sacrebleu.metrics import BLEU

        correct, total = [0] * self.max_order, [0] * self.max_order
        for gram, count in counts.items():
            total[len(gram) - 1] += count
            correct[len(gram) - 1] += min(count, limits.among_others(gram, index))
        others = np.delete(lengths, index)
        nearest = int(others[np.lexsort((others, np.abs(others - lengths[index])))[0]])  # of two, the shorter
        return float(
            BLEU.compute_bleu(
                correct=correct, total=total, sys_len=int(lengths[index]), ref_len=nearest,
                smooth_method="exp", effective_order=True, max_ngram_order=self.max_order,
            ).score
        )  # fmt: skip


class _Largest:
    """How often each n-gram stands at most in one text, and at most in another: all that BLEU needs of references."""

    def __init__(self, counts: list[collections.Counter[Any]]) -> None:
        self._first: dict[Any, tuple[int, int]] = {}
        self._second: dict[Any, int] = {}
        for index, each in enumerate(counts):
            for gram, count in each.items():
                most, _ = self._first.get(gram, (0, -1))
                if count > most:
                    self._first[gram], self._second[gram] = (count, index), most
                else:
                    self._second[gram] = max(self._second[gram], count)

    def among_others(self, gram: Any, index: int) -> int:
        """Return how often an n-gram stands at most in a text other than `index`."""
        most, owner = self._first[gram]
        return self._second[gram] if owner == index else most
