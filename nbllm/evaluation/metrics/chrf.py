"""chrF and chrF++: how many n-grams of characters (and words) a translation shares with a reference."""

from __future__ import annotations

import dataclasses
from typing import Any

from nbllm.core.config import check_positive
from nbllm.core.errors import UserError
from nbllm.evaluation.columns import Columns
from nbllm.evaluation.metrics.base import METRICS
from nbllm.evaluation.metrics.translation import TranslationMetric


@METRICS.register("chrf")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ChrF(TranslationMetric):
    """The F-score of character n-grams over the whole corpus; each segment is compared with its best reference.

    Args:
        char_order: The longest character n-grams.
        word_order: The longest word n-grams; 0 is chrF, 2 is chrF++.
        beta: How many times as much recall counts as precision.
        lowercase: Whether case does not matter.
        whitespace: Whether spaces are characters.
        eps_smoothing: Whether orders without a match count as almost 0, as in chrF++.py; otherwise they are left out.

    Source: Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation"; Popović 2017, "chrF++: words
    helping character n-grams".
    """

    name = "chrf"
    module = "chrf"
    label = "chrF"
    note = "F-score of character n-grams"
    better = "higher"
    scale = (0.0, 100.0)
    columns = ("chrf", "num_references")
    source = "Popović 2015; 2017"

    char_order: int = 6
    word_order: int = 0
    beta: int = 2
    lowercase: bool = False
    whitespace: bool = False
    eps_smoothing: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_positive(self, "char_order", "beta")
        if self.word_order < 0:
            raise UserError(f"word_order must not be negative, not {self.word_order}.", where="ChrF")

    def make_scorer(self) -> Any:
        """Return sacrebleu's chrF."""
        from sacrebleu.metrics import CHRF

        return CHRF(**self.to_dict())

    def signature(self, columns: Columns | None = None) -> str:
        """Return sacrebleu's own signature, which lacks beta: it is added where it is not the usual one."""
        found = super().signature(columns)
        return found if self.beta == 2 else f"{found}|beta:{self.beta}"

    def results(self, columns: Columns) -> dict[str, Any]:
        """Return the score and the orders that it is made of."""
        names = ("char_order", "word_order", "beta")
        return {"score": self.compute(columns), **{name: getattr(self, name) for name in names}}
