"""The base of multiple-choice tasks: the likeliest of several continuations is the model's answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nbllm.core.config import check_choice
from nbllm.core.quantities import counted
from nbllm.evaluation.columns import Row
from nbllm.evaluation.metrics.accuracy import Accuracy, NormalizedAccuracy
from nbllm.evaluation.metrics.base import Metric
from nbllm.evaluation.requests import Likelihood
from nbllm.evaluation.tasks.few_shot import FewShotTask, Item

if TYPE_CHECKING:
    from nbllm.evaluation.measuring import Measured
    from nbllm.lm import Score

# Log-probabilities in float32 of the same question in other batches differ by less than this.
ROUNDING = 1e-4
NORMALIZERS = ("characters", "bytes", "tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultipleChoice(FewShotTask):
    """A task of choices. An item has "question", "choices" (texts) and "answer" (the index of the right one).

    Args:
        normalizer: By which length of a choice its log-probability is divided for the normalized accuracy:
            "characters", "bytes" (UTF-8) or "tokens". The space that joins a choice to the prompt does not count, but
            for its token.

    Attributes:
        normalized_first: Whether the normalized accuracy is the one that is usually reported.
    """

    unit = "questions"
    normalized_first: ClassVar[bool] = False

    normalizer: str = "characters"

    def __post_init__(self) -> None:
        """Check the normalizer."""
        super().__post_init__()
        check_choice(self, "normalizer", NORMALIZERS)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy, by the log-probabilities and by them normalized, the usual one first."""
        return (
            (NormalizedAccuracy(), Accuracy())
            if self.normalized_first
            else (Accuracy(), NormalizedAccuracy())
        )

    def continuations(self, item: Item) -> list[str]:
        """Return what is compared: each choice with the space that joins it to the prompt."""
        return [f" {choice}" for choice in item["choices"]]

    def solution(self, item: Item) -> str:
        """Return the right choice."""
        return self.continuations(item)[item["answer"]]

    def requests(self, example: Mapping[str, Any]) -> Sequence[Likelihood]:
        """Return one request for each choice."""
        prompt = self.prompt(example)
        return [Likelihood(prompt, continuation) for continuation in self.continuations(example)]

    def score(self, example: Mapping[str, Any], answers: Sequence[Any]) -> Row:
        """Return the row of a question: what was chosen, and whether it is right."""
        found = np.array([answer.log_probability for answer in answers])
        lengths = np.array(
            [
                self._length(continuation, answer)
                for continuation, answer in zip(self.continuations(example), answers, strict=True)
            ]
        )
        best = np.sort(found)[::-1]
        return {
            **({self.pool: example[self.pool]} if self.pool else {}),
            "question": example["question"],
            "choices": tuple(example["choices"]),
            "expected": example["answer"],
            "predicted": int(found.argmax()),
            "correct": credit(found, example["answer"]),
            "correct_normalized": credit(found / lengths, example["answer"]),
            "log_probabilities": tuple(found.tolist()),
            "margin": float(best[0] - best[1]) if len(best) > 1 else None,
        }

    def notes(self, measured: Measured) -> list[str]:
        """Say how many questions are ties, and how many rounding may decide."""
        margins = measured.columns["margin"]
        ties, close = int((margins == 0).sum()), int(((margins > 0) & (margins < ROUNDING)).sum())
        return [
            *super().notes(measured),
            f"Of {counted(ties, self.unit)} several choices are equally likely, which count in part."
            if ties
            else "",
            f"A difference of less than {ROUNDING:g}, which the rounding of another batch may turn around, decides "
            f"{counted(close, self.unit)}."
            if close
            else "",
        ]

    def _length(self, continuation: str, answer: Score) -> int:
        text = continuation.removeprefix(" ")
        if self.normalizer == "tokens":
            return answer.num_tokens
        return max(1, len(text.encode()) if self.normalizer == "bytes" else len(text))


def credit(scores: Any, answer: int) -> float:
    """Return 1 where the answer has the highest score alone, its share where several have it, else 0."""
    best = np.flatnonzero(np.asarray(scores) == np.max(scores))
    return 1 / len(best) if answer in best else 0.0
