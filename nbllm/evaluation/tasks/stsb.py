"""The task "glue_stsb": how similar two sentences are in meaning, as a number that the model writes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nbllm.core.errors import DataError, listed
from nbllm.core.quantities import counted
from nbllm.evaluation.columns import Row
from nbllm.evaluation.metrics.base import Metric
from nbllm.evaluation.metrics.pearsonr import Pearson
from nbllm.evaluation.metrics.spearmanr import Spearman
from nbllm.evaluation.records import Record
from nbllm.evaluation.tasks.base import TASKS
from nbllm.evaluation.tasks.few_shot import Item
from nbllm.evaluation.tasks.glue import layout
from nbllm.evaluation.tasks.open_answer import OpenAnswer

if TYPE_CHECKING:
    from nbllm.evaluation.measuring import Measured

LOWEST, HIGHEST = 0.0, 5.0
UNREAD = -1.0  # where no number can be read, as in T5's `string_to_float`
_NUMBER = re.compile(r"-?[0-9]*\.?[0-9]+")


@TASKS.register("glue_stsb")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Stsb(OpenAnswer):
    """The similarity of two sentences from 0 to 5; columns sentence1, sentence2 and label, or score in GLUE's files.

    lm_eval does not have this task; the convention is our own. The model continues the prompt greedily to the end of
    the line, and the first number that it writes is its answer. Where that is none from 0 to 5, or no number is
    written, the answer counts as -1, as in T5 (Raffel et al. 2020, arXiv:1910.10683), and the report names the pair.
    Where all answers are the same, the correlations are 0.

    Source: Cer et al. 2017, "SemEval-2017 Task 1", arXiv:1708.00055.
    """

    name = "glue_stsb"
    label = "STS-B"
    unit = "pairs"
    layout = layout("glue_stsb", "stsb")
    stop = ("\n",)

    max_new_tokens: int = 8

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Pearson's and Spearman's correlation."""
        return Pearson(undefined=0.0), Spearman(undefined=0.0)

    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield a pair of sentences with its similarity."""
        texts = [record.text("sentence1"), record.text("sentence2")]
        score = _score(record, "score" if "score" in record and "label" not in record else "label")
        yield {"question": " / ".join(texts), "texts": texts, "references": [str(score)]}

    def question(self, item: Item) -> str:
        """Return the prompt."""
        one, two = item["texts"]
        return (
            f"Sentence 1: {one}\nSentence 2: {two}\nQuestion: How similar are the two sentences in meaning, "
            "from 0 (different) to 5 (the same)?\nNumber:"
        )

    def solution(self, item: Item) -> str:
        """Return the similarity with one decimal."""
        return f" {float(item['references'][0]):.1f}"

    def judged(self, written: str, references: Sequence[str]) -> Row:
        """Return the number that was written, `UNREAD` where there is none, and the expected one."""
        found = similarity(written)
        return {
            "predicted": UNREAD if found is None else found,
            "expected": float(references[0]),
            "read": float(found is not None),
        }

    def notes(self, measured: Measured) -> list[str]:
        """Name the pairs for which no number could be read, and say where there is no correlation."""
        unread = (np.flatnonzero(measured.columns["read"] == 0) + 1).tolist()
        return [
            *super().notes(measured),
            f"For {counted(len(unread), self.unit)} no number from 0 to 5 was written; the answer counts as "
            f"{UNREAD:g}: {listed(unread, quote=False)}, in the order of the data."
            if unread
            else "",
            "All answers are the same, which correlates with nothing: both figures count as 0."
            if len(np.unique(measured.columns["predicted"])) == 1
            else "",
        ]


def similarity(text: str) -> float | None:
    """Return the first number of a text; `None` where there is none, or it is not from 0 to 5."""
    found = _NUMBER.search(text)
    value = float(found.group()) if found else math.nan
    return value if LOWEST <= value <= HIGHEST else None


def _score(record: Record, name: str) -> float:
    value = record[name]
    try:
        score = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not LOWEST <= score <= HIGHEST:
        raise DataError(
            f"The column {name!r} is {value!r}; it must be a number from {LOWEST:g} to {HIGHEST:g}.",
            where=record.where,
            hint="The test split of GLUE has no labels; measure the validation split.",
        )
    return score
