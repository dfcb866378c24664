"""The task "lambada": the last word of a passage."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nbllm.core.errors import DataError
from nbllm.evaluation.columns import Row
from nbllm.evaluation.metrics.accuracy import Accuracy
from nbllm.evaluation.metrics.base import Metric
from nbllm.evaluation.metrics.word_perplexity import WordPerplexity
from nbllm.evaluation.records import Record
from nbllm.evaluation.requests import Likelihood
from nbllm.evaluation.splits import Layout
from nbllm.evaluation.tasks.base import TASKS
from nbllm.evaluation.tasks.few_shot import FewShotTask, Item


@TASKS.register("lambada")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Lambada(FewShotTask):
    """Passages whose last word is to be predicted; right where every token of it is the likeliest in its place.

    Data: the column text, or "EleutherAI/lambada_openai". As lm_eval's `lambada_openai`.

    Source: Paperno et al. 2016, arXiv:1606.06031.
    """

    name = "lambada"
    label = "LAMBADA"
    unit = "passages"
    layout = Layout("lambada", ("test", "validation", "dev"), ("train",), subset="default")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy, and perplexity per last word."""
        return Accuracy(), WordPerplexity()

    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield a passage without its last word, and that word."""
        begin, _, word = record.text("text").rpartition(" ")
        if not begin or not word:
            raise DataError("The text has no last word after a space.", where=record.where)
        yield {"question": begin, "word": word}

    def question(self, item: Item) -> str:
        """Return the passage without its last word."""
        return str(item["question"])

    def solution(self, item: Item) -> str:
        """Return the last word."""
        return f" {item['word']}"

    def requests(self, example: Mapping[str, Any]) -> Sequence[Likelihood]:
        """Return the request for the last word."""
        return [Likelihood(self.prompt(example), self.solution(example))]

    def score(self, example: Mapping[str, Any], answers: Sequence[Any]) -> Row:
        """Return whether the model would write the word, and its likelihood."""
        (found,) = answers
        return {
            "question": example["question"],
            "expected": example["word"],
            "correct": float(found.greedy),
            "nats": -found.log_probability,
            "num_tokens": found.num_tokens,
        }
