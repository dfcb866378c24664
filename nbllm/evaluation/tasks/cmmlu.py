"""The task "cmmlu": questions in Chinese of 67 subjects with four choices."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from nbllm.core.errors import DataError, UserError, nearest
from nbllm.evaluation.metrics.accuracy import Accuracy, MacroAccuracy
from nbllm.evaluation.metrics.base import Metric
from nbllm.evaluation.records import Record
from nbllm.evaluation.splits import Layout
from nbllm.evaluation.tasks.base import TASKS
from nbllm.evaluation.tasks.cmmlu_subjects import CHINESE, GROUP_OF
from nbllm.evaluation.tasks.few_shot import Item
from nbllm.evaluation.tasks.mmlu import LETTERS
from nbllm.evaluation.tasks.subjects import BySubject


@TASKS.register("cmmlu")
@dataclasses.dataclass(frozen=True, kw_only=True)
class CMMLU(BySubject):
    """Questions of 67 subjects, asked as lm_eval's `cmmlu` asks them: the likelihoods of A, B, C and D are compared.

    Data: a folder with the published files (`dev/anatomy.csv`, `test/anatomy.csv`; columns Question, A, B, C, D and
    Answer, a letter).

    Source: Li et al. 2023, arXiv:2306.09212.
    """

    name = "cmmlu"
    label = "CMMLU"
    layout = Layout("cmmlu", ("test",), ("dev",))
    groups = GROUP_OF

    def __post_init__(self) -> None:
        """Check the number of worked examples."""
        super().__post_init__()
        if self.shots > 5:
            raise UserError(f"cmmlu has 5 worked examples a subject; shots is {self.shots}.", where="CMMLU")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy over all questions, and the mean over subjects."""
        return Accuracy(), MacroAccuracy()

    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield a question; its subject is what the file is named by, or a column."""
        name = record.text("subject") if "subject" in record else record.file
        if name not in GROUP_OF:
            raise DataError(
                f"{name!r} is none of CMMLU's {len(GROUP_OF)} subjects.",
                where=record.where,
                hint=nearest(name, GROUP_OF),
            )
        yield {
            "subject": name,
            "question": record.text("Question"),
            "choices": [record.text(letter) for letter in LETTERS],
            "answer": record.index("Answer", LETTERS),
        }

    def preamble(self, item: Item) -> str:
        """Return the first line."""
        return f"以下是关于{CHINESE[item['subject']]}的单项选择题，请直接给出正确答案的选项。\n\n"  # noqa: RUF001

    def question(self, item: Item) -> str:
        """Return the question with its choices."""
        choices = "".join(
            f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, item["choices"], strict=True)
        )
        return f"{item['question'].strip()}{choices}\n答案："  # noqa: RUF001

    def continuations(self, item: Item) -> list[str]:
        """Return the letters."""
        return [f" {letter}" for letter in LETTERS]
