"""The task "nq_open": short questions that people asked a search engine, without a text to read."""

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


@TASKS.register("nq_open")
@dataclasses.dataclass(frozen=True, kw_only=True)
class NqOpen(OpenAnswer):
    """Questions with several right answers; an answer ends with its line. Compared by SQuAD's rules.

    Data: the columns question and answer (a list), or "google-research-datasets/nq_open".

    Source: Lee et al. 2019, arXiv:1906.00300; the prompt as in lm_eval's `nq_open`.
    """

    name = "nq_open"
    label = "Natural Questions"
    layout = Layout("nq_open", ("validation", "dev", "test"), ("train",))
    separator = "\n"
    stop = ("\n",)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Exact match and F1."""
        return SquadExactMatch(), SquadF1()

    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield a question with its answers."""
        yield {"question": record.text("question"), "references": record.texts("answer")}

    def preamble(self, item: Item) -> str:
        """Return the first line."""
        return "Answer these questions:\n\n"

    def question(self, item: Item) -> str:
        """Return the question, which the data have without its mark."""
        return f"Q: {item['question']}?\nA:"
