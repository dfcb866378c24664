"""ROUGE: how many n-grams, or how long a subsequence, a summary shares with a reference."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from nbllm.core.config import check_choice
from nbllm.core.errors import DataError, UserError
from nbllm.evaluation.columns import Columns, Row
from nbllm.evaluation.metrics.base import METRICS, MeanOfRows, PredictionMetric
from nbllm.evaluation.metrics.words import has_letters, unicode_words

_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
# After the punctuation that ends a sentence: spaces, or nothing where the script has none.
_SENTENCE_END = re.compile(r"(?<=[.!?؟।])\s+|(?<=[。！？])\s*")  # noqa: RUF001 (full-width marks are meant)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rouge(PredictionMetric, MeanOfRows):
    """The mean over summaries of an F-score against the best reference, as rouge-score computes it.

    The aggregate is the mean. (`evaluate` returns the median of a bootstrap of the mean, which is random.)

    Args:
        use_stemmer: Whether words of more than three letters are cut to their stem (English; Porter's).
        tokenizer: "rouge-score", whose words are runs of a to z and 0 to 9; "unicode", words in any script; or a
            function that returns a text's words. `None` is rouge-score's, but refuses a text of other letters alone,
            which would count as empty.
        sentences: What ends a sentence for ROUGE-Lsum: "newline", as in rouge-score, or "punctuation".

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".
    """

    module = "rouge"
    better = "higher"
    scale = (0.0, 1.0)
    package = "rouge-score"
    source = "Lin 2004"

    use_stemmer: bool = False
    tokenizer: str | Callable[[str], list[str]] | None = None
    sentences: str = "newline"

    def __post_init__(self) -> None:
        """Check the choices."""
        check_choice(self, "sentences", ("newline", "punctuation"))
        if not callable(self.tokenizer) and self.tokenizer is not None:
            check_choice(self, "tokenizer", ("rouge-score", "unicode"))
        if self.use_stemmer and self.tokenizer not in (None, "rouge-score"):
            raise UserError(
                "Only rouge-score's own tokenizer stems.", where="use_stemmer", hint="Leave tokenizer out."
            )

    def conventions(self, columns: Columns | None = None) -> dict[str, object]:
        """Return the rules by which summaries are compared."""
        chosen = self.to_dict()
        return {
            **chosen,
            "tokenizer": chosen["tokenizer"] or "rouge-score",
            "references": "best",
            "mean": "examples",
        }

    @functools.cached_property
    def _scorer(self) -> Any:
        from rouge_score.rouge_scorer import RougeScorer

        words = unicode_words if self.tokenizer == "unicode" else self.tokenizer
        return RougeScorer(_TYPES, self.use_stemmer, tokenizer=_Tokenizer(words) if callable(words) else None)

    def row(self, prediction: str, reference: str | Sequence[str]) -> Row:
        """Return the F-scores of a summary, 0 to 1: "rouge1", "rouge2", "rougeL" and "rougeLsum".

        Raises:
            DataError: rouge-score's tokenizer finds no word in a text that has letters.
        """
        golds = [reference] if isinstance(reference, str) else reference
        if self.tokenizer is None:
            for text in (prediction, *golds):
                self._check_readable(text)
        if self.sentences == "punctuation":
            prediction, golds = _lines(prediction), [_lines(gold) for gold in golds]
        found = self._scorer.score_multi(golds, prediction)
        return {name: float(score.fmeasure) for name, score in found.items()}

    @staticmethod
    def _check_readable(text: str) -> None:
        if not re.search("[a-z0-9]", text.lower()) and has_letters(text):
            raise DataError(
                f"ROUGE's usual tokenizer finds no word in {text!r}: its words are runs of a to z and 0 to 9.",
                hint='Give tokenizer="unicode" for words in any script; tokenizer="rouge-score" counts it as empty.',
            )

    def results(
        self, columns: Columns, *, rouge_types: Sequence[str] | None = None, use_aggregator: bool = True
    ) -> dict[str, Any]:
        """Return the mean, or the score of each example.

        Args:
            columns: By name, each (row).
            rouge_types: Which are returned; `None` is all.
            use_aggregator: Whether the mean is returned.
        """
        for name in rouge_types or ():
            if name not in _TYPES:
                raise UserError(
                    f"There is no {name!r} here.", where="rouge_types", hint=f"Known: {', '.join(_TYPES)}."
                )
        if rouge_types is not None and self.key not in rouge_types:
            return {}
        return {self.key: self.compute(columns) if use_aggregator else columns[self.key].tolist()}


class _Tokenizer:
    """A function as a tokenizer of rouge-score."""

    def __init__(self, words: Callable[[str], list[str]]) -> None:
        self.tokenize = words


def _lines(text: str) -> str:
    """Return a text with each sentence on a line."""
    return "\n".join(filter(None, _SENTENCE_END.split(" ".join(text.split()))))


@METRICS.register("rouge1")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rouge1(Rouge):
    """Shared words, as F-score.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 2.
    """

    name = key = "rouge1"
    label = "ROUGE-1"
    note = "shared words, as F-score"
    columns = ("rouge1",)


@METRICS.register("rouge2")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rouge2(Rouge):
    """Shared pairs of words, as F-score.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 2.
    """

    name = key = "rouge2"
    label = "ROUGE-2"
    note = "shared pairs of words, as F-score"
    columns = ("rouge2",)


@METRICS.register("rougeL")
@dataclasses.dataclass(frozen=True, kw_only=True)
class RougeL(Rouge):
    """Longest common subsequence of words, as F-score.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3.1.
    """

    name = key = "rougeL"
    label = "ROUGE-L"
    note = "longest common subsequence of words, as F-score"
    columns = ("rougeL",)


@METRICS.register("rougeLsum")
@dataclasses.dataclass(frozen=True, kw_only=True)
class RougeLsum(Rouge):
    """Longest common subsequences of words, sentence by sentence, as F-score.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3.2.
    """

    name = key = "rougeLsum"
    label = "ROUGE-Lsum"
    note = "longest common subsequences of words, sentence by sentence, as F-score"
    columns = ("rougeLsum",)
