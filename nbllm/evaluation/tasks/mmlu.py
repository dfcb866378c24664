"""The task "mmlu": questions of 57 subjects with four choices, as three programs ask them.

Source: Hendrycks et al. 2021, "Measuring Massive Multitask Language Understanding", arXiv:2009.03300.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from nbllm.core.config import check_choice
from nbllm.core.errors import DataError, UserError, nearest
from nbllm.evaluation.metrics.accuracy import Accuracy, MacroAccuracy, NormalizedAccuracy
from nbllm.evaluation.metrics.base import Metric
from nbllm.evaluation.records import Record
from nbllm.evaluation.splits import Layout
from nbllm.evaluation.tasks.base import TASKS
from nbllm.evaluation.tasks.few_shot import Item
from nbllm.evaluation.tasks.mmlu_subjects import GROUP_OF
from nbllm.evaluation.tasks.subjects import BySubject

LETTERS = "ABCD"
CONVENTIONS = ("harness", "hendrycks", "lighteval")
FORMS = ("letters", "cloze")


@TASKS.register("mmlu")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MMLU(BySubject):
    """Questions of 57 subjects, with four choices each.

    Data: a folder with Hendrycks' files (`dev/astronomy_dev.csv`, `test/astronomy_test.csv`, without header), or with
    the hub's export (Parquet, JSON Lines or CSV with the columns question, subject, choices or choice0 to choice3, and
    answer, 0 to 3), or "cais/mmlu".

    Args:
        convention: Whose prompt, to the character: "harness" (lm_eval's `mmlu`), "hendrycks" (the paper's program,
            which has two spaces before a subject) or "lighteval" (Hugging Face's).
        form: "letters" shows the choices and compares the likelihoods of A, B, C and D; "cloze" shows none, and
            compares those of the choices themselves (lm_eval's `mmlu_continuation`, lighteval's `mmlu_cloze`).
        subjects: Names of subjects; none is all.
    """

    name = "mmlu"
    label = "MMLU"
    layout = Layout("mmlu", ("test",), ("dev",), ("question", *LETTERS, "answer"), subset="all")
    groups = GROUP_OF

    convention: str = "harness"
    form: str = "letters"

    def __post_init__(self) -> None:
        """Check convention, form and shots."""
        super().__post_init__()
        check_choice(self, "convention", CONVENTIONS)
        check_choice(self, "form", FORMS)
        if self.shots > 5:
            raise UserError(f"mmlu has 5 worked examples a subject; shots is {self.shots}.", where="MMLU")
        if self.form == "cloze" and self.convention == "hendrycks":
            raise UserError(
                'The convention "hendrycks" has no cloze form.', hint='Use "harness" or "lighteval".'
            )

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy over all questions and the mean over subjects; of the cloze form, normalized first."""
        letters = (Accuracy(), MacroAccuracy())
        return letters if self.form == "letters" else (NormalizedAccuracy(), *letters)

    def check_records(self, records: Sequence[Record]) -> None:
        """Check that either all files name their columns or none does."""
        first = {record.named: record for record in reversed(records)}
        if len(first) == 2:
            raise DataError(
                f"{first[False].where} has no header, as Hendrycks' files, and {first[True].where} has one, as the "
                "hub's export: what their answers mean cannot be told for certain.",
                hint="Give files of one layout.",
            )

    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield a question; its subject is a column, or what the file is named by."""
        yield {
            "subject": self._subject(record),
            "question": record.text("question"),
            "choices": self._choices(record),
            "answer": self._answer(record),
        }

    def _choices(self, record: Record) -> list[str]:
        if not record.named:
            return [record.text(letter) for letter in LETTERS]
        if "choices" not in record and "choice0" in record:
            return [record.text(f"choice{i}") for i in range(4)]
        choices = record.texts("choices")
        if len(choices) != 4:
            raise DataError(f"There are {len(choices)} choices, not 4.", where=record.where)
        return choices

    def _answer(self, record: Record) -> int:
        value = record["answer"]
        is_letter = str(value).strip() in tuple(LETTERS)
        if record.named == is_letter:
            kind, other = ("the hub's export", "Hendrycks'") if record.named else ("Hendrycks'", "the hub's")
            raise DataError(
                f"The answer {value!r} is in the layout of {other} files, all else in {kind}: a mixture.",
                where=record.where,
                hint="Files without header have the letters A to D, files with column names the numbers 0 to 3.",
            )
        return record.index("answer", LETTERS if not record.named else range(4))

    def _subject(self, record: Record) -> str:
        name = (
            record.text("subject")
            if "subject" in record or not record.file
            else record.file.removesuffix("_test").removesuffix("_dev")
        )
        if name not in GROUP_OF:
            raise DataError(
                f"{name!r} is none of MMLU's {len(GROUP_OF)} subjects.",
                where=record.where,
                hint=nearest(name, GROUP_OF, most=5),
            )
        return name

    def preamble(self, item: Item) -> str:
        """Return the first line, of the convention."""
        subject = item["subject"].replace("_", " ")
        if self.form == "cloze":
            answers, end = ("", "\n") if self.convention == "lighteval" else (" (with answers)", "\n\n")
            return f"The following are questions{answers} about {subject}.{end}"
        space = " " if self.convention == "hendrycks" else ""
        return f"The following are multiple choice questions (with answers) about {space}{subject}.\n\n"

    def question(self, item: Item) -> str:
        """Return the question, of the convention."""
        question = item["question"].strip() if self.convention == "harness" else item["question"]
        if self.form == "cloze":
            return f"Question: {question}\nAnswer:"
        choices = "".join(
            f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, item["choices"], strict=True)
        )
        before = "Question: " if self.convention == "lighteval" else ""
        return f"{before}{question}{choices}\nAnswer:"

    def continuations(self, item: Item) -> list[str]:
        """Return the letters, or the choices."""
        return [f" {letter}" for letter in LETTERS] if self.form == "letters" else super().continuations(item)
