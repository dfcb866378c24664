"""BLEU: how many n-grams of a translation its references have too."""

from __future__ import annotations

import dataclasses
from typing import Any

from nbllm.core.config import check_choice
from nbllm.evaluation.columns import Columns
from nbllm.evaluation.metrics.base import METRICS
from nbllm.evaluation.metrics.translation import TranslationMetric


@METRICS.register("bleu")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Bleu(TranslationMetric):
    """The geometric mean of n-gram precisions times a penalty for brevity, over the whole corpus.

    Args:
        smooth_method: For orders without a match: "exp", "floor", "add-k" or "none".
        smooth_value: Of "floor" and "add-k"; `None` is sacrebleu's.
        force: Whether text that looks tokenized already is no reason to warn.
        lowercase: Whether case does not matter.
        tokenize: "13a", "intl", "zh", "char", "none", ...; `None` is "13a".
        use_effective_order: Whether orders that no segment is long enough for are left out.

    Source: Papineni et al. 2002, "BLEU: a Method for Automatic Evaluation of Machine Translation", section 2.3; Post
    2018, arXiv:1804.08771.
    """

    name = "bleu"
    module = "sacrebleu"
    label = "BLEU"
    note = "geometric mean of 1- to 4-gram precisions, with a penalty for brevity"
    better = "higher"
    scale = (0.0, 100.0)
    columns = ("bleu", "num_references")
    source = "Papineni et al. 2002; Post 2018, arXiv:1804.08771"

    smooth_method: str = "exp"
    smooth_value: float | None = None
    force: bool = False
    lowercase: bool = False
    tokenize: str | None = None
    use_effective_order: bool = False

    def __post_init__(self) -> None:
        """Check the choices."""
        check_choice(self, "smooth_method", ("exp", "floor", "add-k", "none"))
        if self.tokenize is not None:
            from sacrebleu.metrics import BLEU

            check_choice(self, "tokenize", tuple(BLEU.TOKENIZERS))

    def make_scorer(self) -> Any:
        """Return sacrebleu's BLEU."""
        from sacrebleu.metrics import BLEU

        return BLEU(
            lowercase=self.lowercase,
            force=self.force,
            tokenize=self.tokenize,
            smooth_method=self.smooth_method,
            smooth_value=self.smooth_value,
            effective_order=self.use_effective_order,
        )

    def results(self, columns: Columns) -> dict[str, Any]:
        """Return the score and what it is made of."""
        found = self.score(self.sums(columns))
        names = ("score", "counts", "totals", "precisions", "bp", "sys_len", "ref_len")
        return {name: getattr(found, name) for name in names}
