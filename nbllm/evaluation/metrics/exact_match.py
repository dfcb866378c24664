"""Exact match: the share of predictions that are the same text as a reference."""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Sequence

from nbllm.core.errors import UserError
from nbllm.evaluation.columns import Row
from nbllm.evaluation.metrics.base import METRICS, MeanOfRows, PredictionMetric


@METRICS.register("exact_match")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ExactMatch(PredictionMetric, MeanOfRows):
    """The share of predictions that equal their reference, or one of several.

    Two texts of which nothing is left match only if they were the same before.

    Args:
        regexes_to_ignore: Regular expressions whose matches are removed first.
        ignore_case: Whether case does not matter.
        ignore_punctuation: Whether ASCII punctuation is removed.
        ignore_numbers: Whether the digits 0 to 9 are removed.
    """

    name = key = module = "exact_match"
    label = "exact match"
    note = "share of predictions that equal a reference"
    better = "higher"
    scale = (0.0, 1.0)
    columns = ("exact_match",)
    source = "the module exact_match of Hugging Face's evaluate"

    regexes_to_ignore: tuple[str, ...] | None = None
    ignore_case: bool = False
    ignore_punctuation: bool = False
    ignore_numbers: bool = False

    def __post_init__(self) -> None:
        """Check the expressions."""
        if self.regexes_to_ignore is None:
            return
        given: object = self.regexes_to_ignore
        if not isinstance(given, (list, tuple)):
            raise UserError(f"regexes_to_ignore is {given!r}.", hint="Give a list of regular expressions.")
        object.__setattr__(self, "regexes_to_ignore", tuple(given))
        for each in self.regexes_to_ignore:
            try:
                re.compile(each)
            except (re.error, TypeError) as error:
                raise UserError(
                    f"{each!r} is no regular expression: {error}.", where="regexes_to_ignore"
                ) from None

    def row(self, prediction: str, reference: str | Sequence[str]) -> Row:
        """Return "exact_match": 1 for a match."""
        golds = [reference] if isinstance(reference, str) else reference
        return {"exact_match": float(any(self._match(prediction, gold) for gold in golds))}

    def _match(self, prediction: str, gold: str) -> bool:
        one, two = self._reduced(prediction), self._reduced(gold)
        return one == two and (one != "" or prediction == gold)

    def _reduced(self, text: str) -> str:
        for each in self.regexes_to_ignore or ():
            text = re.sub(each, "", text)
        if self.ignore_case:
            text = text.lower()
        removed = string.punctuation * self.ignore_punctuation + string.digits * self.ignore_numbers
        return text.translate(str.maketrans("", "", removed))
