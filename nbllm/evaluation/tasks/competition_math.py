"""The task "math": problems of mathematics competitions, whose answer is an expression."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from nbllm.core.errors import DataError
from nbllm.evaluation.columns import Row
from nbllm.evaluation.math_equality import equal, last_boxed
from nbllm.evaluation.metrics.accuracy import Accuracy
from nbllm.evaluation.metrics.base import Metric
from nbllm.evaluation.records import Record
from nbllm.evaluation.splits import Layout
from nbllm.evaluation.tasks.base import TASKS
from nbllm.evaluation.tasks.few_shot import Item
from nbllm.evaluation.tasks.open_answer import OpenAnswer


@TASKS.register("math")
@dataclasses.dataclass(frozen=True, kw_only=True)
class CompetitionMath(OpenAnswer):
    r"""Problems whose solutions end with `\boxed{...}`. What the last box holds is compared by its value.

    Data: the columns problem and solution (and type), as the authors' JSON files have them, one a problem in folders
    named by split, or "EleutherAI/hendrycks_math".

    Source: Hendrycks et al. 2021, arXiv:2103.03874; the prompt of Lewkowycz et al. 2022, arXiv:2206.14858.
    """

    name = "math"
    label = "MATH"
    unit = "problems"
    layout = Layout("math", ("test",), ("train",))
    cluster = "subject"
    stop = ("Problem:",)

    max_new_tokens: int = 512

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy."""
        return (Accuracy(),)

    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield a problem with its solution."""
        solution = record.text("solution")
        if last_boxed(solution) is None:
            raise DataError(r"The solution has no \boxed{...}.", where=record.where)
        subject = record.text("type") if "type" in record else "all"
        yield {"subject": subject, "question": record.text("problem"), "references": [solution]}

    def question(self, item: Item) -> str:
        """Return the problem."""
        return f"Problem:\n{item['question']}\n\nSolution:"

    def judged(self, written: str, references: Sequence[str]) -> Row:
        """Return whether the answer is right; a text without a box is wrong."""
        gold, found = last_boxed(references[0]), last_boxed(written)
        assert gold is not None
        return {
            "expected": gold,
            "predicted": found or "",
            "correct": float(found is not None and equal(found, gold)),
        }
