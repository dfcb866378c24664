"""The task "bbh": BIG-Bench Hard, 27 kinds of problems that were hard for language models."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from nbllm.evaluation.columns import Row
from nbllm.evaluation.metrics.accuracy import Accuracy, MacroAccuracy
from nbllm.evaluation.metrics.base import Metric
from nbllm.evaluation.records import Record
from nbllm.evaluation.splits import Layout
from nbllm.evaluation.tasks.base import TASKS
from nbllm.evaluation.tasks.few_shot import Item
from nbllm.evaluation.tasks.open_answer import OpenAnswer


@TASKS.register("bbh")
@dataclasses.dataclass(frozen=True, kw_only=True)
class BigBenchHard(OpenAnswer):
    """Problems with one right answer, which is compared without its full stop and regardless of case.

    Data: a folder with the authors' files, one a kind (`boolean_expressions.json`: examples with input and target).
    Worked examples are other problems of the same file.

    Source: Suzgun et al. 2022, arXiv:2210.09261.
    """

    name = "bbh"
    label = "BIG-Bench Hard"
    unit = "problems"
    layout = Layout("bbh", ("test", ""), ("test", ""))
    cluster = "subject"
    pool = "subject"
    stop = ("\n\n", "Q:")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy over all problems, and the mean over kinds."""
        return Accuracy(), MacroAccuracy()

    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield a problem; its kind is what the file is named by, or a column."""
        yield {
            "subject": record.text("subject") if "subject" in record else record.file,
            "question": record.text("input"),
            "references": [record.text("target")],
        }

    def question(self, item: Item) -> str:
        """Return the problem."""
        return f"Q: {item['question']}\nA:"

    def judged(self, written: str, references: Sequence[str]) -> Row:
        """Return whether the answer is right."""
        return {"correct": float(_reduced(written) == _reduced(references[0]))}


def _reduced(text: str) -> str:
    return text.strip().removesuffix(".").lower()
