"""The tasks "arc_easy" and "arc_challenge": science questions of school exams."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from nbllm.evaluation.records import Record
from nbllm.evaluation.splits import Layout
from nbllm.evaluation.tasks.base import TASKS
from nbllm.evaluation.tasks.few_shot import Item
from nbllm.evaluation.tasks.multiple_choice import MultipleChoice


class _Arc(MultipleChoice):
    """Science questions, asked as lm_eval's `arc_easy` and `arc_challenge` ask them.

    Data: the columns question, choices (text and label) and answerKey, or AllenAI's own JSON Lines, whose question is
    an object with stem and choices.
    """

    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield a question."""
        if isinstance(record["question"], str):
            question, choices = record.text("question"), record.inner("choices")
            texts, labels = choices.texts("text"), choices.texts("label")
        else:
            inner = record.inner("question")
            question, listed = inner.text("stem"), inner.inners("choices")
            texts, labels = [each.text("text") for each in listed], [each.text("label") for each in listed]
        yield {"question": question, "choices": texts, "answer": record.index("answerKey", labels)}

    def question(self, item: Item) -> str:
        """Return the question."""
        return f"Question: {item['question']}\nAnswer:"


@TASKS.register("arc_easy")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ArcEasy(_Arc):
    """The questions that simple programs can answer; "allenai/ai2_arc".

    Source: Clark et al. 2018, arXiv:1803.05457.
    """

    name = "arc_easy"
    label = "ARC easy"
    layout = Layout("arc_easy", ("test",), ("train",), subset="ARC-Easy")


@TASKS.register("arc_challenge")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ArcChallenge(_Arc):
    """The questions that simple programs cannot answer; "allenai/ai2_arc".

    Source: Clark et al. 2018, arXiv:1803.05457.
    """

    name = "arc_challenge"
    label = "ARC challenge"
    layout = Layout("arc_challenge", ("test",), ("train",), subset="ARC-Challenge")
    normalized_first = True
