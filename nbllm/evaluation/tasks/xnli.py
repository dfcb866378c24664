"""The task "xnli": whether a sentence follows from another, in fifteen languages."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from nbllm.core.config import check_choice
from nbllm.evaluation.metrics.accuracy import Accuracy
from nbllm.evaluation.metrics.base import Metric
from nbllm.evaluation.records import Record
from nbllm.evaluation.splits import Layout
from nbllm.evaluation.tasks.base import TASKS
from nbllm.evaluation.tasks.few_shot import Item
from nbllm.evaluation.tasks.multiple_choice import MultipleChoice

# "right?", and the words for entailment, neutrality and contradiction, as lm_eval has them.
WORDS = {
    "ar": ("صحيح", "نعم", "لذا", "رقم"),
    "bg": ("правилно", "да", "така", "не"),
    "de": ("richtig", "Ja", "Auch", "Nein"),
    "el": ("σωστός", "Ναί", "Έτσι", "όχι"),
    "en": ("right", "Yes", "Also", "No"),
    "es": ("correcto", "Sí", "Asi que", "No"),
    "fr": ("correct", "Oui", "Aussi", "Non"),
    "hi": ("सही", "हाँ", "इसलिए", "नहीं"),
    "ru": ("правильно", "Да", "Так", "Нет"),
    "sw": ("sahihi", "Ndiyo", "Hivyo", "Hapana"),
    "th": ("ถูกต้อง", "ใช่", "ดังนั้น", "ไม่"),
    "tr": ("doğru", "Evet", "Böylece", "Hayır"),  # noqa: RUF001
    "ur": ("صحیح", "جی ہاں", "اس لئے", "نہیں"),
    "vi": ("đúng", "Vâng", "Vì vậy", "Không"),
    "zh": ("正确", "是的", "所以", "不是的"),
}


@TASKS.register("xnli")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Xnli(MultipleChoice):
    """Pairs of sentences, joined by a word for each of the three labels; the likeliest whole is the answer.

    Data: the columns premise, hypothesis and label (0 entailment, 1 neutral, 2 contradiction), "facebook/xnli".

    Args:
        language: Of the sentences: "en", "de", "zh", ...

    Source: Conneau et al. 2018, arXiv:1809.05053; the prompt of Lin et al. 2022, arXiv:2112.10668.
    """

    name = "xnli"
    label = "XNLI"
    unit = "pairs"
    layout = Layout("xnli", ("validation", "dev", "test"), ("train",))

    language: str = "en"

    def __post_init__(self) -> None:
        """Check the language."""
        super().__post_init__()
        check_choice(self, "language", tuple(WORDS))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy."""
        return (Accuracy(),)

    def published(self) -> Layout:
        """Return the layout with the language's subset."""
        return dataclasses.replace(self.layout, subset=self.language)

    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield a pair of sentences."""
        premise, hypothesis = record.text("premise"), record.text("hypothesis")
        right, *words = WORDS[self.language]
        yield {
            "question": f"{premise} / {hypothesis}",
            "choices": [f"{premise}, {right}? {word}, {hypothesis}" for word in words],
            "answer": record.label("label", ("entailment", "neutral", "contradiction")),
        }

    def question(self, item: Item) -> str:
        """Return nothing: the choices are whole texts."""
        return ""

    def continuations(self, item: Item) -> list[str]:
        """Return the whole texts, as beginnings of a document; lm_eval has a space before them."""
        return [f" {choice}" for choice in item["choices"]]
