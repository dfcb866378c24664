"""Exact match and F1 of answers by the rules of SQuAD 2.0, where some questions have no answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nbllm.evaluation.columns import Array, Columns, Row, take
from nbllm.evaluation.metrics.answers import AnswerMetric
from nbllm.evaluation.metrics.base import METRICS
from nbllm.evaluation.metrics.squad import INPUTS_V2, paired


@dataclasses.dataclass(frozen=True, kw_only=True)
class _SquadV2(AnswerMetric):
    """Answers by SQuAD 2.0's rules: to a question without an answer, only an empty answer is right.

    Args:
        no_answer_threshold: An answer whose probability that there is none is above this counts as empty.
        abstention: A text that says that there is no answer, such as the prompt teaches: it counts as an empty answer.
    """

    module = "squad_v2"
    scale = (0.0, 100.0)
    inputs = INPUTS_V2
    source = "Rajpurkar et al. 2018, arXiv:1806.03822"

    no_answer_threshold: float = 1.0
    abstention: str | None = None

    def row(self, prediction: str, reference: Sequence[str], no_answer_probability: float = 0.0) -> Row:
        """Return the columns of one question.

        Args:
            prediction: The answer, "" for none.
            reference: Gold answers; none where the question has no answer.
            no_answer_probability: That there is no answer.
        """
        if self.abstention is not None and self.normalized(prediction) == self.normalized(self.abstention):
            prediction = ""
        golds = [gold for gold in reference if self.normalized(gold)] or [""]
        return {
            **super().row(prediction, golds),
            "no_answer_probability": no_answer_probability,
            "has_answer": bool(reference),
            "answered": prediction != "",
        }

    def rows(
        self, predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]
    ) -> list[Row]:
        """Return the columns of each question, in the order of the predictions.

        Raises:
            DataError: The ids of predictions and references differ.
        """
        return [
            self.row(prediction["prediction_text"], golds, prediction["no_answer_probability"])
            for prediction, golds in paired(predictions, references)
        ]

    def f1(self, prediction: str, gold: str) -> float:
        """Return the F1 of the tokens; of an empty answer, whether both are empty."""
        if not self.normalized(prediction) or not self.normalized(gold):
            return float(self.exact(prediction, gold))
        return super().f1(prediction, gold)

    def terms(self, columns: Columns) -> tuple[Array, Array]:
        """Return the scores under the threshold, and one for each question."""
        abstains = columns["no_answer_probability"] > self.no_answer_threshold
        scores = np.where(abstains, 1 - columns["has_answer"], columns[self.columns[0]])
        return scores, np.ones(len(scores))

    def results(self, columns: Columns) -> dict[str, Any]:
        """Return the figure over all questions, over those with and without an answer, and at its best threshold."""
        out: dict[str, Any] = {self.key: self.compute(columns), "total": len(columns["has_answer"])}
        has_answer = columns["has_answer"] > 0
        for prefix, chosen in (("HasAns", has_answer), ("NoAns", ~has_answer)):
            if chosen.any():
                out[f"{prefix}_{self.key}"] = self.compute(take(columns, np.flatnonzero(chosen)))
                out[f"{prefix}_total"] = int(chosen.sum())
        best, threshold = self._best_threshold(columns)
        return {**out, f"best_{self.key}": best, f"best_{self.key}_thresh": threshold}

    def _best_threshold(self, columns: Columns) -> tuple[float, float]:
        """Return the figure at the threshold that is best for it, and that threshold."""
        order = np.argsort(columns["no_answer_probability"], kind="stable")
        without = np.where(
            columns["answered"] > 0, -1.0, 0.0
        )  # what answering gains where there is no answer
        gains = np.where(columns["has_answer"] > 0, columns[self.columns[0]], without)[order]
        start = float((columns["has_answer"] == 0).sum())  # nothing is answered
        scores = np.concatenate([[start], gains]).cumsum()
        best = int(scores.argmax())
        threshold = columns["no_answer_probability"][order[best - 1]] if best else 0.0
        return self.scale[1] * float(scores[best]) / len(gains), float(threshold)


_COLUMNS = ("no_answer_probability", "has_answer", "answered")


@METRICS.register("squad_v2_exact")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SquadV2Exact(_SquadV2):
    """The percentage of questions whose answer is, normalized, a gold answer, or empty where there is none.

    Source: Rajpurkar et al. 2018, arXiv:1806.03822, section 4; its evaluation script.
    """

    name = "squad_v2_exact"
    key = "exact"
    label = "exact match"
    note = "percentage of answers that equal a gold answer, or abstain where there is none"
    columns = ("exact_match", *_COLUMNS)


@METRICS.register("squad_v2_f1")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SquadV2F1(_SquadV2):
    """The mean F1 of the tokens of an answer and its best gold answer, in percent.

    Source: Rajpurkar et al. 2018, arXiv:1806.03822, section 4; its evaluation script.
    """

    name = "squad_v2_f1"
    key = "f1"
    label = "F1"
    note = "tokens shared with the best gold answer, in percent; abstaining counts where there is none"
    columns = ("f1", *_COLUMNS)
