"""The task "winogrande": which of two names a pronoun stands for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nbllm.core.errors import DataError
from nbllm.evaluation.metrics.accuracy import Accuracy
from nbllm.evaluation.metrics.base import Metric
from nbllm.evaluation.records import Record
from nbllm.evaluation.requests import Likelihood
from nbllm.evaluation.splits import Layout
from nbllm.evaluation.tasks.base import TASKS
from nbllm.evaluation.tasks.few_shot import Item
from nbllm.evaluation.tasks.multiple_choice import MultipleChoice


@TASKS.register("winogrande")
@dataclasses.dataclass(frozen=True, kw_only=True)
class WinoGrande(MultipleChoice):
    """Sentences with a gap and two names for it. What is compared is the likelihood of the rest after each name.

    Data: the columns sentence (with "_"), option1, option2 and answer ("1" or "2"), or "allenai/winogrande".

    Source: Sakaguchi et al. 2019, arXiv:1907.10641; the partial scoring of Trinh and Le 2018, arXiv:1806.02847, as
    lm_eval's `winogrande` has it.
    """

    name = "winogrande"
    label = "WinoGrande"
    layout = Layout("winogrande", ("validation", "dev", "val"), ("train",), subset="winogrande_xl")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy: what is compared is the same text, so that its length cancels."""
        return (Accuracy(),)

    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield a sentence with its names."""
        sentence = record.text("sentence")
        if sentence.count("_") != 1 or not sentence.partition("_")[2].strip():
            raise DataError("The sentence has no gap '_' with a text behind it.", where=record.where)
        yield {
            "question": sentence,
            "choices": [record.text("option1"), record.text("option2")],
            "answer": record.index("answer", (1, 2)),
        }

    def question(self, item: Item) -> str:
        """Return the sentence up to the end of the right name."""
        return self._begin(item, item["answer"])

    def continuations(self, item: Item) -> list[str]:
        """Return the rest of the sentence, for each name."""
        return [f" {item['question'].partition('_')[2].strip()}"] * 2

    def requests(self, example: Mapping[str, Any]) -> Sequence[Likelihood]:
        """Return a request for the rest of the sentence after each name."""
        prompt = self.prompt(example)
        return [
            Likelihood(dataclasses.replace(prompt, text=self._begin(example, index)), rest)
            for index, rest in enumerate(self.continuations(example))
        ]

    def _begin(self, item: Item, index: int) -> str:
        return f"{item['question'].partition('_')[0]}{item['choices'][index]}"
