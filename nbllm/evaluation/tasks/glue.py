"""The tasks of GLUE: judgements of a sentence or of two, asked in words as lm_eval asks them.

Source: Wang et al. 2018, arXiv:1804.07461. STS-B, whose answer is a number, has a file of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

from nbllm.evaluation.metrics.accuracy import Accuracy
from nbllm.evaluation.metrics.base import Metric
from nbllm.evaluation.metrics.f1 import F1
from nbllm.evaluation.metrics.matthews_correlation import MatthewsCorrelation
from nbllm.evaluation.records import Record
from nbllm.evaluation.splits import Layout
from nbllm.evaluation.tasks.base import TASKS
from nbllm.evaluation.tasks.few_shot import Item
from nbllm.evaluation.tasks.multiple_choice import MultipleChoice

_SPLITS = ("validation", "validation_matched", "dev", "val")


def layout(name: str, subset: str, splits: tuple[str, ...] = _SPLITS) -> Layout:
    """Return the layout of a task of GLUE or SuperGLUE."""
    return Layout(name, splits, ("train",), subset=subset)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelInWords(MultipleChoice):
    """A label that is asked for in words.

    Attributes:
        fields: The columns of texts.
        template: The prompt, with the fields' names in braces.
        words: The word for each label, in the order of the labels' numbers.
        names: The names that labels may have in the data instead of numbers.
    """

    fields: ClassVar[tuple[str, ...]]
    template: ClassVar[str]
    words: ClassVar[tuple[str, ...]]
    names: ClassVar[tuple[str, ...]]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy."""
        return (Accuracy(),)

    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield the texts with their label."""
        texts = {field: record.text(field) for field in self.fields}
        yield {
            "question": " / ".join(texts.values()),
            "texts": texts,
            "choices": list(self.words),
            "answer": record.label("label", self.names),
        }

    def question(self, item: Item) -> str:
        """Return the prompt."""
        return self.template.format(**item["texts"])


@TASKS.register("glue_cola")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cola(LabelInWords):
    """Whether a sentence is acceptable English; columns sentence and label."""

    name = "glue_cola"
    label = "CoLA"
    layout = layout("glue_cola", "cola")
    fields = ("sentence",)
    template = "{sentence}\nQuestion: Does this sentence make sense?\nAnswer:"
    words = ("no", "yes")
    names = ("unacceptable", "acceptable")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Matthews' correlation, and accuracy."""
        return MatthewsCorrelation(), Accuracy()


@TASKS.register("glue_sst2")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Sst2(LabelInWords):
    """Whether a sentence of a film review is positive; columns sentence and label."""

    name = "glue_sst2"
    label = "SST-2"
    layout = layout("glue_sst2", "sst2")
    fields = ("sentence",)
    template = "{sentence}\nQuestion: Is this sentence positive or negative?\nAnswer:"
    words = ("negative", "positive")
    names = words


class _Equivalence(LabelInWords):
    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy, and the F1 of the label for "the same"."""
        return Accuracy(), F1()


@TASKS.register("glue_mrpc")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mrpc(_Equivalence):
    """Whether two sentences of news mean the same; columns sentence1, sentence2 and label."""

    name = "glue_mrpc"
    label = "MRPC"
    layout = layout("glue_mrpc", "mrpc")
    fields = ("sentence1", "sentence2")
    template = (
        "Sentence 1: {sentence1}\nSentence 2: {sentence2}\n"
        "Question: Do both sentences mean the same thing?\nAnswer:"
    )
    words = ("no", "yes")
    names = ("not_equivalent", "equivalent")


@TASKS.register("glue_qqp")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Qqp(_Equivalence):
    """Whether two questions ask the same; columns question1, question2 and label."""

    name = "glue_qqp"
    label = "QQP"
    layout = layout("glue_qqp", "qqp")
    fields = ("question1", "question2")
    template = (
        "Question 1: {question1}\nQuestion 2: {question2}\n"
        "Question: Do both questions ask the same thing?\nAnswer:"
    )
    words = ("no", "yes")
    names = ("not_duplicate", "duplicate")


@TASKS.register("glue_mnli")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mnli(LabelInWords):
    """Whether a sentence follows from another; columns premise, hypothesis and label."""

    name = "glue_mnli"
    label = "MNLI"
    layout = layout("glue_mnli", "mnli", ("validation_matched", "matched", "validation", "dev"))
    fields = ("premise", "hypothesis")
    template = "{premise}\nQuestion: {hypothesis} True, False or Neither?\nAnswer:"
    words = ("True", "Neither", "False")
    names = ("entailment", "neutral", "contradiction")

    def question(self, item: Item) -> str:
        """Return the prompt; the second sentence ends with a full stop."""
        hypothesis = item["texts"]["hypothesis"].strip()
        stop = "" if hypothesis.endswith(".") else "."
        return self.template.format(premise=item["texts"]["premise"], hypothesis=f"{hypothesis}{stop}")


@TASKS.register("glue_qnli")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Qnli(LabelInWords):
    """Whether a sentence answers a question; columns question, sentence and label."""

    name = "glue_qnli"
    label = "QNLI"
    layout = layout("glue_qnli", "qnli")
    fields = ("question", "sentence")
    template = "{question}\n{sentence}\nQuestion: Does this response answer the question?\nAnswer:"
    words = ("yes", "no")
    names = ("entailment", "not_entailment")


@TASKS.register("glue_rte")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rte(LabelInWords):
    """Whether a sentence follows from another; columns sentence1, sentence2 and label."""

    name = "glue_rte"
    label = "RTE"
    layout = layout("glue_rte", "rte")
    fields = ("sentence1", "sentence2")
    template = "{sentence1}\nQuestion: {sentence2} True or False?\nAnswer:"
    words = ("True", "False")
    names = ("entailment", "not_entailment")


@TASKS.register("glue_wnli")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Wnli(LabelInWords):
    """Whether a sentence follows from one with a pronoun; columns sentence1, sentence2 and label."""

    name = "glue_wnli"
    label = "WNLI"
    layout = layout("glue_wnli", "wnli")
    fields = ("sentence1", "sentence2")
    template = "{sentence1}\nQuestion: {sentence2} True or False?\nAnswer:"
    words = ("False", "True")
    names = ("not_entailment", "entailment")
