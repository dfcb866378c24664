"""Tasks of SuperGLUE, asked in words as lm_eval asks them: BoolQ, CB, COPA, MultiRC, WiC and WSC.

RTE is GLUE's, and ReCoRD has a file of its own.

Source: Wang et al. 2019, arXiv:1905.00537.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from nbllm.core.errors import DataError
from nbllm.evaluation.metrics.accuracy import Accuracy
from nbllm.evaluation.metrics.base import Metric
from nbllm.evaluation.records import Record
from nbllm.evaluation.tasks.base import TASKS
from nbllm.evaluation.tasks.few_shot import Item
from nbllm.evaluation.tasks.glue import LabelInWords, layout
from nbllm.evaluation.tasks.multiple_choice import MultipleChoice


@TASKS.register("boolq")
@dataclasses.dataclass(frozen=True, kw_only=True)
class BoolQ(LabelInWords):
    """Yes-or-no questions on a passage; columns passage, question and label."""

    name = "boolq"
    label = "BoolQ"
    layout = layout("boolq", "boolq")
    fields = ("passage", "question")
    template = "{passage}\nQuestion: {question}?\nAnswer:"
    words = ("no", "yes")
    names = ("false", "true")


@TASKS.register("cb")
@dataclasses.dataclass(frozen=True, kw_only=True)
class CommitmentBank(LabelInWords):
    """Whether a speaker is committed to a clause; columns premise, hypothesis and label."""

    name = "cb"
    label = "CB"
    layout = layout("cb", "cb")
    fields = ("premise", "hypothesis")
    template = "{premise}\nQuestion: {hypothesis}. True, False, or Neither?\nAnswer:"
    words = ("True", "False", "Neither")
    names = ("entailment", "contradiction", "neutral")


@TASKS.register("copa")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Copa(MultipleChoice):
    """Which of two is the cause or the effect; columns premise, choice1, choice2, question and label."""

    name = "copa"
    label = "COPA"
    layout = layout("copa", "copa")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy."""
        return (Accuracy(),)

    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield a premise with its choices."""
        word = ("because", "therefore")[record.label("question", ("cause", "effect"))]
        yield {
            "question": f"{record.text('premise').strip()[:-1]} {word}",
            "choices": [record.text("choice1"), record.text("choice2")],
            "answer": record.index("label", range(2)),
        }

    def question(self, item: Item) -> str:
        """Return the premise, without its full stop, and the word that joins it."""
        return str(item["question"])

    def continuations(self, item: Item) -> list[str]:
        """Return the choices, which go on a sentence; lm_eval has two spaces before them."""
        return [f"  {choice[0].lower()}{choice[1:]}" for choice in item["choices"]]


@TASKS.register("multirc")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiRC(LabelInWords):
    """Whether an answer to a question on a paragraph is right; columns paragraph, question, answer and label."""

    name = "multirc"
    label = "MultiRC"
    layout = layout("multirc", "multirc")
    fields = ("paragraph", "question", "answer")
    template = "{paragraph}\nQuestion: {question}\nAnswer:"
    words = ("yes", "no")
    names = ("false", "true")

    def continuations(self, item: Item) -> list[str]:
        """Return the answer and whether it is right, as lm_eval has it: "yes" stands for the label 0."""
        return [f" {item['texts']['answer']}\nIs the answer correct? {word}" for word in self.words]


@TASKS.register("wic")
@dataclasses.dataclass(frozen=True, kw_only=True)
class WordInContext(LabelInWords):
    """Whether a word means the same in two sentences; columns sentence1, sentence2, start1, end1 and label."""

    name = "wic"
    label = "WiC"
    layout = layout("wic", "wic")
    fields = ("sentence1", "sentence2")
    template = (
        "Sentence 1: {sentence1}\nSentence 2: {sentence2}\nQuestion: Is the word '{word}' used in the same way in "
        "the two sentences above?\nAnswer:"
    )
    words = ("no", "yes")
    names = ("false", "true")

    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield the sentences with the word that they share."""
        for item in super().items(record):
            start, end = record["start1"], record["end1"]
            word = (
                item["texts"]["sentence1"][start:end]
                if isinstance(start, int) and isinstance(end, int)
                else ""
            )
            if not word:
                raise DataError("start1 and end1 mark no word of sentence1.", where=record.where)
            yield {**item, "texts": {**item["texts"], "word": word}}


@TASKS.register("wsc")
@dataclasses.dataclass(frozen=True, kw_only=True)
class WinogradSchemas(LabelInWords):
    """Whether a pronoun refers to a noun; columns text, span1_text, span2_text, span2_index and label.

    In the official files the spans stand in an object, the column target. `span2_index` counts words.
    """

    name = "wsc"
    label = "WSC"
    layout = layout("wsc", "wsc.fixed")
    template = (
        'Passage: {passage}\nQuestion: In the passage above, does the pronoun "*{pronoun}*" refer to "*{noun}*"?\n'
        "Answer:"
    )
    words = ("no", "yes")
    names = ("false", "true")

    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield the text, its pronoun between asterisks, with the noun."""
        spans = record.inner("target") if "target" in record else record
        text, noun, pronoun = record.text("text"), spans.text("span1_text"), spans.text("span2_text")
        words, index = text.split(), spans["span2_index"]
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(words):
            raise DataError(
                f"span2_index is {index!r}; the text has {len(words)} words, counted from 0.",
                where=spans.where,
            )
        before = " ".join(words[:index])
        passage = _detokenized(f"{before} *{pronoun}*{text[len(before) + len(pronoun) + 1 :]}")
        yield {
            "question": f"{passage} / {noun}",
            "texts": {"passage": passage, "pronoun": pronoun, "noun": noun},
            "choices": list(self.words),
            "answer": record.label("label", self.names),
        }


def _detokenized(text: str) -> str:
    """Return a text without the spaces that a tokenizer put around punctuation, as lm_eval's `general_detokenize`."""
    for apart, together in ((" n't", "n't"), (" )", ")"), ("( ", "("), ('" ', '"'), (' "', '"')):
        text = text.replace(apart, together)
    return re.sub(r" (['.,])", r"\1", text)
