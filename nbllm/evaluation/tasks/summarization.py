"""The tasks "cnn_dailymail" and "xsum": news to be summarised."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

from nbllm.evaluation.metrics.base import Metric
from nbllm.evaluation.metrics.rouge import Rouge1, Rouge2, RougeL, RougeLsum
from nbllm.evaluation.records import Record
from nbllm.evaluation.splits import Layout
from nbllm.evaluation.tasks.base import TASKS
from nbllm.evaluation.tasks.few_shot import Item
from nbllm.evaluation.tasks.open_answer import OpenAnswer


class _Summaries(OpenAnswer):
    """Texts to be summarised."""

    unit = "texts"
    stop = ("\n\n",)
    columns: ClassVar[tuple[str, str]]  # of the text and the summary

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """ROUGE-1, -2, -L and -Lsum."""
        return Rouge1(), Rouge2(), RougeL(), RougeLsum()

    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield a text with its summary."""
        text, summary = self.columns
        yield {"question": record.text(text), "references": [record.text(summary)]}

    def question(self, item: Item) -> str:
        """Return the text, and what asks for a summary.

        Source: Radford et al. 2019 (GPT-2), section 3.6.
        """
        return f"{item['question']}\n\nTL;DR:"


@TASKS.register("cnn_dailymail")
@dataclasses.dataclass(frozen=True, kw_only=True)
class CnnDailyMail(_Summaries):
    """News with the highlights of their editors; columns article and highlights, "abisee/cnn_dailymail".

    Source: See, Liu and Manning 2017, arXiv:1704.04368.
    """

    name = "cnn_dailymail"
    label = "CNN/Daily Mail"
    layout = Layout("cnn_dailymail", ("test", "validation"), ("train",), subset="3.0.0")
    columns = ("article", "highlights")

    max_new_tokens: int = 128


@TASKS.register("xsum")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Xsum(_Summaries):
    """News with a summary of one sentence; columns document and summary, "EdinburghNLP/xsum".

    Source: Narayan, Cohen and Lapata 2018, arXiv:1808.08745.
    """

    name = "xsum"
    label = "XSum"
    layout = Layout("xsum", ("test", "validation"), ("train",))
    columns = ("document", "summary")

    max_new_tokens: int = 64
