"""The task "piqa": which of two ways reaches a goal in the physical world."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from nbllm.evaluation.records import Record
from nbllm.evaluation.splits import Layout
from nbllm.evaluation.tasks.base import TASKS
from nbllm.evaluation.tasks.few_shot import Item
from nbllm.evaluation.tasks.multiple_choice import MultipleChoice


@TASKS.register("piqa")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Piqa(MultipleChoice):
    """Goals with two solutions, asked as lm_eval's `piqa` asks them.

    Data: the columns goal, sol1, sol2 and label, or "baber/piqa".

    Source: Bisk et al. 2020, arXiv:1911.11641.
    """

    name = "piqa"
    label = "PIQA"
    layout = Layout("piqa", ("validation", "valid", "val"), ("train",))

    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield a goal with its solutions."""
        yield {
            "question": record.text("goal"),
            "choices": [record.text("sol1"), record.text("sol2")],
            "answer": record.index("label", range(2)),
        }

    def question(self, item: Item) -> str:
        """Return the goal."""
        return f"Question: {item['question']}\nAnswer:"
