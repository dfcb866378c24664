"""Exact match and F1 of answers by the rules of SQuAD 1.1."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from nbllm.core.errors import DataError
from nbllm.evaluation.columns import Row
from nbllm.evaluation.metrics.answers import AnswerMetric
from nbllm.evaluation.metrics.base import METRICS
from nbllm.evaluation.metrics.inputs import NUMBER, TEXT, Input, record


def _gold_texts(value: Any) -> dict[str, list[str]]:
    """Return the texts of gold answers, which may be none; where they start is not needed."""
    if not isinstance(value, Mapping) or "text" not in value:
        raise TypeError("is no dictionary with 'text' (and 'answer_start')")
    texts = value["text"]
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise TypeError("has a 'text' that is no list of texts")
    return {"text": [TEXT.read(each) for each in texts]}


_GOLD = Input("gold answers", ({"text": ["string"]},), _gold_texts)
_REFERENCE = Input(
    "a dictionary {'id': ..., 'answers': {'text': [...], 'answer_start': [...]}}",
    ({"id": "string", "answers": {"text": ["string"]}},),
    record(id=TEXT, answers=_GOLD),
)
_PREDICTION = Input(
    "a dictionary {'id': ..., 'prediction_text': ...}",
    ({"id": "string", "prediction_text": "string"},),
    record(id=TEXT, prediction_text=TEXT),
)
INPUTS = {"predictions": _PREDICTION, "references": _REFERENCE}
INPUTS_V2 = {
    "predictions": Input(
        "a dictionary {'id': ..., 'prediction_text': ..., 'no_answer_probability': ...}",
        ({"id": "string", "prediction_text": "string", "no_answer_probability": "float64"},),
        record(id=TEXT, prediction_text=TEXT, no_answer_probability=NUMBER),
    ),
    "references": _REFERENCE,
}


def paired(
    predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]
) -> list[tuple[Mapping[str, Any], list[str]]]:
    """Return each prediction with the gold answers of its question, matched by their ids.

    Raises:
        DataError: An id stands twice, or not on both sides.
    """
    golds = _by_id("references", references)
    _by_id("predictions", predictions)
    out = []
    for index, prediction in enumerate(predictions):
        if prediction["id"] not in golds:
            raise DataError(
                f"predictions[{index}] has the id {prediction['id']!r}, which no reference has.",
                hint="Every question has one prediction, '' where a model gave none, and one reference.",
            )
        out.append((prediction, golds[prediction["id"]]["answers"]["text"]))
    return out


def _by_id(name: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    out: dict[str, Mapping[str, Any]] = {}
    for index, each in enumerate(records):
        if each["id"] in out:
            raise DataError(f"{name}[{index}] has the id {each['id']!r}, as an earlier one has.")
        out[each["id"]] = each
    return out


class _Squad(AnswerMetric):
    """Answers by SQuAD's rules; the best of all gold answers counts."""

    module = "squad"
    scale = (0.0, 100.0)
    inputs = INPUTS
    source = "Rajpurkar et al. 2016, arXiv:1606.05250"

    def rows(
        self, predictions: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]
    ) -> list[Row]:
        """Return the columns of each question, in the order of the predictions.

        Raises:
            DataError: The ids of predictions and references differ, or a question has no gold answer.
        """
        out = []
        for prediction, golds in paired(predictions, references):
            if not golds:
                raise DataError(
                    f"The question {prediction['id']!r} has no gold answer.",
                    hint="Use squad_v2, where a question may have none.",
                )
            out.append(self.row(prediction["prediction_text"], golds))
        return out


@METRICS.register("squad_exact_match")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SquadExactMatch(_Squad):
    """The percentage of questions whose answer is, normalized, one of the gold answers.

    Source: Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1.
    """

    name = "squad_exact_match"
    key = "exact_match"
    label = "exact match"
    note = "percentage of answers that equal a gold answer"
    columns = ("exact_match",)


@METRICS.register("squad_f1")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SquadF1(_Squad):
    """The mean F1 of the tokens of an answer and its best gold answer, in percent.

    Source: Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1.
    """

    name = "squad_f1"
    key = "f1"
    label = "F1"
    note = "tokens shared with the best gold answer, in percent"
    columns = ("f1",)
