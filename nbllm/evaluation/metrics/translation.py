"""What BLEU, chrF and TER have in common: the library sacrebleu counts, and a figure is a function of summed counts."""

from __future__ import annotations

import abc
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from nbllm.evaluation.columns import Array, Columns, Row
from nbllm.evaluation.metrics.base import FunctionOfSums, PredictionMetric


class TranslationMetric(PredictionMetric, FunctionOfSums):
    """A metric of sacrebleu. Its rows are the counts of a segment, under the metric's name, and `num_references`.

    References are one list per prediction (sacrebleu's own functions take one list per set of references). They may
    differ in number: a reference that does not exist is left out, which is not the same as an empty one.
    """

    key = "score"
    package = "sacrebleu"

    @functools.cached_property
    def scorer(self) -> Any:
        """The metric of sacrebleu with these settings."""
        return self.make_scorer()

    @abc.abstractmethod
    def make_scorer(self) -> Any:
        """Return the metric of sacrebleu with these settings."""

    def row(self, prediction: str, reference: Sequence[str]) -> Row:
        """Return the counts of one segment."""
        return self.rows([prediction], [reference])[0]

    def rows(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[Row]:
        """Return the counts of each segment."""
        sets = list(
            itertools.zip_longest(*references)
        )  # where a segment has fewer references than others: None
        counts = self.scorer._extract_corpus_statistics(predictions, sets)
        return [
            {self.name: tuple(each), "num_references": len(golds)}
            for each, golds in zip(counts, references, strict=True)
        ]

    def statistics(self, columns: Columns) -> Array:
        """Return the counts of each segment: (row, count)."""
        return np.array(columns[self.name].tolist(), np.float64)

    def figures(self, sums: Array) -> Array:
        """Return the score of each set of summed counts."""
        return np.array([self.score(each).score for each in sums], np.float64)

    def score(self, sums: Array) -> Any:
        """Return sacrebleu's score of summed counts: (count)."""
        return self.scorer._compute_score_from_stats([int(x) if x.is_integer() else x for x in sums.tolist()])

    def signature(self, columns: Columns | None = None) -> str:
        """Return sacrebleu's own signature."""
        counts = [] if columns is None else sorted(set(columns["num_references"].tolist()))
        self.scorer.num_refs = int(counts[0]) if len(counts) == 1 else -1  # sacrebleu's "var"
        found = self.scorer.get_signature()
        if not counts:
            found.update("nrefs", None)
        return str(found)
