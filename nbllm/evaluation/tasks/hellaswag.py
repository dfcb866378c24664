"""The task "hellaswag": how an everyday scene goes on."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from nbllm.evaluation.records import Record
from nbllm.evaluation.splits import Layout
from nbllm.evaluation.tasks.base import TASKS
from nbllm.evaluation.tasks.few_shot import Item
from nbllm.evaluation.tasks.multiple_choice import MultipleChoice

_BRACKETED = re.compile(r"\[.*?\]")


@TASKS.register("hellaswag")
@dataclasses.dataclass(frozen=True, kw_only=True)
class HellaSwag(MultipleChoice):
    """Sentences with four endings, asked as lm_eval's `hellaswag` asks them.

    Data: the columns activity_label, ctx_a, ctx_b, endings and label, or "Rowan/hellaswag".

    Source: Zellers et al. 2019, arXiv:1905.07830.
    """

    name = "hellaswag"
    label = "HellaSwag"
    layout = Layout("hellaswag", ("validation", "val", "valid"), ("train",))
    normalized_first = True

    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield a scene with its endings."""
        scene = f"{record.text('ctx_a', may_be_empty=True)} {record.text('ctx_b', may_be_empty=True).capitalize()}"
        endings = record.texts("endings")
        yield {
            "question": _cleaned(f"{record.text('activity_label')}: {scene}"),
            "choices": [_cleaned(ending) for ending in endings],
            "answer": record.index("label", range(len(endings))),
        }

    def question(self, item: Item) -> str:
        """Return the scene."""
        return str(item["question"])


def _cleaned(text: str) -> str:
    """Return a text without the marks that WikiHow's pages left in it."""
    return _BRACKETED.sub("", text.strip().replace(" [title]", ". ")).replace("  ", " ")
