"""TER: how many edits make a reference of a translation."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from nbllm.evaluation.columns import Columns
from nbllm.evaluation.metrics.base import METRICS
from nbllm.evaluation.metrics.translation import TranslationMetric


@METRICS.register("ter")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Ter(TranslationMetric):
    """Insertions, deletions, substitutions and shifts per hundred words of the references' mean length.

    Args:
        normalized: Whether punctuation becomes words of its own, and XML entities characters.
        ignore_punct: Whether punctuation is left out.
        support_zh_ja_chars: Whether these two also know the punctuation and characters of Chinese and Japanese.
        case_sensitive: Whether case matters.

    Source: Snover et al. 2006, "A Study of Translation Edit Rate with Targeted Human Annotation", section 2.
    """

    name = "ter"
    module = "ter"
    label = "TER"
    note = "edits per hundred words of the reference"
    better = "lower"
    scale = (0.0, math.inf)
    columns = ("ter", "num_references")
    source = "Snover et al. 2006"

    normalized: bool = False
    ignore_punct: bool = False
    support_zh_ja_chars: bool = False
    case_sensitive: bool = False

    def make_scorer(self) -> Any:
        """Return sacrebleu's TER."""
        from sacrebleu.metrics import TER

        return TER(
            normalized=self.normalized,
            no_punct=self.ignore_punct,
            asian_support=self.support_zh_ja_chars,
            case_sensitive=self.case_sensitive,
        )

    def results(self, columns: Columns) -> dict[str, Any]:
        """Return the score, the edits and the mean length of the references, summed over segments."""
        found = self.score(self.sums(columns))
        return {name: getattr(found, name) for name in ("score", "num_edits", "ref_length")}
