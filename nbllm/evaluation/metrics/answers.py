"""What exact match and F1 of answers have in common: a normalizer, and the best of all gold answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from nbllm.core.config import check_choice
from nbllm.evaluation.columns import Columns, Row
from nbllm.evaluation.metrics.base import MeanOfRows, PredictionMetric
from nbllm.evaluation.metrics.normalizing import LANGUAGES, NORMALIZERS, token_f1


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerMetric(PredictionMetric, MeanOfRows):
    """A mean over answers, each compared with all its gold answers, the best of which counts.

    Args:
        normalizer: Before two answers are compared: "squad" (the rule of SQuAD 1.1: lower case, without punctuation
            and English articles), "squad_nonempty" (the same, but an answer that it would erase is kept), "mlqa"
            (that of MLQA for `language`) or "none".
        language: Of "mlqa": "en", "es", "hi", "vi", "de", "ar", "zh" as published; further ones without articles.
            Languages without spaces between words are compared by character.
    """

    better = "higher"

    normalizer: str = "squad"
    language: str = "en"

    def __post_init__(self) -> None:
        """Check the choices."""
        check_choice(self, "normalizer", tuple(NORMALIZERS))
        check_choice(self, "language", LANGUAGES)

    def conventions(self, columns: Columns | None = None) -> dict[str, object]:
        """Return the rules by which answers are compared."""
        out = super().conventions(columns)
        if self.normalizer != "mlqa":
            del out["language"]
        return {**out, "golds": "best"}

    def normalized(self, text: str) -> str:
        """Return an answer as it is compared."""
        return NORMALIZERS[self.normalizer](text, self.language)

    def row(self, prediction: str, reference: str | Sequence[str]) -> Row:
        """Return "exact_match" and "f1", 0 to 1, of one answer."""
        golds = [reference] if isinstance(reference, str) else reference
        return {
            "exact_match": float(max(self.exact(prediction, gold) for gold in golds)),
            "f1": max(self.f1(prediction, gold) for gold in golds),
        }

    def exact(self, prediction: str, gold: str) -> bool:
        """Return whether two answers are the same."""
        return self.normalized(prediction) == self.normalized(gold)

    def f1(self, prediction: str, gold: str) -> float:
        """Return the F1 of the tokens of two answers."""
        return token_f1(self.normalized(prediction).split(), self.normalized(gold).split())
