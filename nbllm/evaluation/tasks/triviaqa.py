"""The task "triviaqa": quiz questions, without a text to read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from nbllm.evaluation.metrics.base import Metric
from nbllm.evaluation.metrics.squad import SquadExactMatch, SquadF1
from nbllm.evaluation.records import Record
from nbllm.evaluation.splits import Layout
from nbllm.evaluation.tasks.base import TASKS
from nbllm.evaluation.tasks.few_shot import Item
from nbllm.evaluation.tasks.open_answer import OpenAnswer


@TASKS.register("triviaqa")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TriviaQA(OpenAnswer):
    """Questions with all names of the answer; an answer ends with its line. Compared by SQuAD's rules.

    Data: the hub's columns question and answer (with aliases), "mandarjoshi/trivia_qa", or the authors' JSON (Question
    and Answer, with Aliases).

    Source: Joshi et al. 2017, arXiv:1705.03551.
    """

    name = "triviaqa"
    label = "TriviaQA"
    layout = Layout("triviaqa", ("validation", "dev", "test"), ("train",), subset="rc.nocontext")
    stop = ("\n",)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Exact match and F1."""
        return SquadExactMatch(), SquadF1()

    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield a question with the names of its answer."""
        if "Question" in record:
            yield {"question": record.text("Question"), "references": record.inner("Answer").texts("Aliases")}
        else:
            yield {"question": record.text("question"), "references": record.inner("answer").texts("aliases")}

    def question(self, item: Item) -> str:
        """Return the question."""
        return f"Question: {item['question']}\nAnswer:"
