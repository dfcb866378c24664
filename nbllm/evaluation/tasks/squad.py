"""The tasks "squad", "squad_v2" and "xquad": questions whose answer stands in a text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from nbllm.core.config import check_choice
from nbllm.core.errors import DataError
from nbllm.evaluation.metrics.base import Metric
from nbllm.evaluation.metrics.squad import SquadExactMatch, SquadF1
from nbllm.evaluation.metrics.squad_v2 import SquadV2Exact, SquadV2F1
from nbllm.evaluation.records import Record
from nbllm.evaluation.splits import Layout
from nbllm.evaluation.tasks.base import TASKS
from nbllm.evaluation.tasks.few_shot import Item
from nbllm.evaluation.tasks.open_answer import OpenAnswer

ABSTENTION = "unanswerable"
XQUAD_LANGUAGES = ("en", "ar", "de", "el", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")


class _Extractive(OpenAnswer):
    """Questions on a text. Data: the official nested JSON, or the hub's columns title, context, question, answers."""

    cluster = "document"
    stop = ("\n",)

    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield the questions of an article, or the one of a row."""
        if "paragraphs" not in record:
            yield self._item(record, record.text("context"), record.text("title"), record.inner("answers"))
            return
        for paragraph in record.inners("paragraphs"):
            for asked in paragraph.inners("qas"):
                texts = [answer.text("text") for answer in asked.inners("answers")]
                title = record.text("title") if "title" in record else record.where.rpartition(", ")[2]
                answers = Record({"text": texts}, asked.where)
                yield self._item(asked, paragraph.text("context"), title, answers)

    def _item(self, record: Record, context: str, title: str, answers: Record) -> dict[str, Any]:
        references = list(dict.fromkeys(answers.texts("text"))) if answers["text"] else []
        if not references and not self.may_have_no_answer:
            raise DataError(
                "The question has no answer.",
                where=record.where,
                hint='Use "squad_v2", where it may have none.',
            )
        return {
            "document": title,
            "context": context,
            "question": record.text("question"),
            "references": references,
        }

    may_have_no_answer = False

    def question(self, item: Item) -> str:
        """Return the text with the question."""
        return f"Title: {item['document']}\n\nBackground: {item['context']}\n\nQuestion: {item['question']}\n\nAnswer:"

    def solution(self, item: Mapping[str, Any]) -> str:
        """Return the first answer, or the word that says that there is none."""
        return f" {item['references'][0] if item['references'] else ABSTENTION}"


@TASKS.register("squad")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Squad(_Extractive):
    """SQuAD 1.1: every question has answers in the text; "rajpurkar/squad".

    Source: Rajpurkar et al. 2016, arXiv:1606.05250.
    """

    name = "squad"
    label = "SQuAD 1.1"
    layout = Layout("squad", ("validation", "dev"), ("train",))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Exact match and F1."""
        return SquadExactMatch(), SquadF1()


@TASKS.register("squad_v2")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SquadV2(_Extractive):
    """SQuAD 2.0: a question may have no answer, which the model says by the word "unanswerable"; "rajpurkar/squad_v2".

    Source: Rajpurkar et al. 2018, arXiv:1806.03822.
    """

    name = "squad_v2"
    label = "SQuAD 2.0"
    layout = Layout("squad_v2", ("validation", "dev"), ("train",))
    may_have_no_answer = True

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Exact match and F1, for which an abstention is right where there is no answer."""
        return SquadV2Exact(abstention=ABSTENTION), SquadV2F1(abstention=ABSTENTION)

    def preamble(self, item: Item) -> str:
        """Say how to abstain."""
        return f'Answer from the background alone. If it does not hold the answer, write "{ABSTENTION}".\n\n'


@TASKS.register("xquad")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Xquad(_Extractive):
    """XQuAD: questions of SQuAD 1.1 in twelve languages; `xquad.zh.json`, or "google/xquad".

    Answers are compared by the rules of MLQA for the language: character by character where it has no spaces.

    Args:
        language: Of the file: "en", "zh", ...

    Source: Artetxe, Ruder and Yogatama 2020, arXiv:1910.11856; Lewis et al. 2020, arXiv:1910.07475 (the rules).
    """

    name = "xquad"
    label = "XQuAD"
    layout = Layout("xquad", ("en",), ())

    language: str = "en"

    def __post_init__(self) -> None:
        """Check the language."""
        super().__post_init__()
        check_choice(self, "language", XQUAD_LANGUAGES)

    def published(self) -> Layout:
        """Return the layout, whose file is named by the language; on the hub it is the subset."""
        return dataclasses.replace(
            self.layout, splits=(self.language, "validation"), subset=f"xquad.{self.language}"
        )

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Exact match and F1, of the language."""
        rules = {"normalizer": "mlqa", "language": self.language}
        return SquadExactMatch(**rules), SquadF1(**rules)
