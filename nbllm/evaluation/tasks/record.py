"""The task "record" of SuperGLUE: which entity of a news text fills the gap in a statement about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nbllm.core.errors import DataError
from nbllm.evaluation.columns import Row
from nbllm.evaluation.metrics.base import Metric
from nbllm.evaluation.metrics.squad import SquadExactMatch, SquadF1
from nbllm.evaluation.records import Record
from nbllm.evaluation.tasks.base import TASKS
from nbllm.evaluation.tasks.few_shot import Item
from nbllm.evaluation.tasks.glue import layout
from nbllm.evaluation.tasks.multiple_choice import MultipleChoice

_HIGHLIGHT = "\n@highlight\n"  # before each summary sentence at the end of a text
_GAP = "@placeholder"


@TASKS.register("record")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ReCoRD(MultipleChoice):
    """Statements with a gap; the likeliest entity is compared with all right ones by SQuAD's rules.

    Data: the columns passage, query, entities and answers, as the hub has them, or the official nested JSON Lines
    (passage with text and entities, qas). The figures are means over statements; statements on one text are a cluster,
    which the text's first 80 characters name.

    Source: Zhang et al. 2018, arXiv:1810.12885; the prompt as in lm_eval's `record`.
    """

    name = "record"
    label = "ReCoRD"
    unit = "statements"
    cluster = "document"
    layout = layout("record", "record")

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Exact match and F1."""
        return SquadExactMatch(), SquadF1()

    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield the statements on a text, or the one of a row."""
        if "qas" not in record:
            entities, answers = record.texts("entities"), record.texts("answers")
            yield self._item(record, record.text("passage"), entities, answers)
            return
        passage = record.inner("passage")
        text = passage.text("text")
        entities = [_span(text, entity) for entity in passage.inners("entities")]
        for asked in record.inners("qas"):
            answers = [answer.text("text") for answer in asked.inners("answers")]
            if not answers:
                raise DataError("The statement has no answer.", where=asked.where)
            yield self._item(asked, text, entities, answers)

    def _item(
        self, record: Record, passage: str, entities: Sequence[str], answers: Sequence[str]
    ) -> dict[str, Any]:
        query = record.text("query")
        if _GAP not in query:
            raise DataError(f"The statement has no {_GAP}.", where=record.where)
        return {
            "document": passage.strip()[:80],
            "passage": passage,
            "question": query,
            "choices": sorted(set(entities)),
            "references": sorted(set(answers)),
        }

    def question(self, item: Item) -> str:
        """Return the text, and its highlights as a list that the statement continues."""
        text, *highlights = item["passage"].strip().split(_HIGHLIGHT)
        return f"{text}\n\n" + "".join(f"  - {highlight}.\n" for highlight in highlights)

    def continuations(self, item: Item) -> list[str]:
        """Return the statement with each entity in its gap."""
        return [self._filled(item, entity) for entity in item["choices"]]

    def solution(self, item: Item) -> str:
        """Return the statement with the first right entity."""
        return self._filled(item, item["references"][0])

    def _filled(self, item: Item, entity: str) -> str:
        return f"   - {item['question']}".replace(_GAP, entity)

    def score(self, example: Mapping[str, Any], answers: Sequence[Any]) -> Row:
        """Return the row of a statement; where several entities are the likeliest, the mean over them counts."""
        found = np.array([answer.log_probability for answer in answers])
        descending = np.sort(found)[::-1]
        golds, metric = example["references"], SquadExactMatch()
        tied = [
            metric.row(example["choices"][index], golds) for index in np.flatnonzero(found == found.max())
        ]
        figures = {name: float(np.mean([row[name] for row in tied])) for name in ("exact_match", "f1")}
        return {
            "document": example["document"],
            "question": example["question"],
            "choices": tuple(example["choices"]),
            "references": tuple(golds),
            "predicted": example["choices"][int(found.argmax())],
            "correct": figures["exact_match"],
            **figures,
            "log_probabilities": tuple(found.tolist()),
            "margin": float(descending[0] - descending[1]) if len(found) > 1 else None,
        }


def _span(text: str, entity: Record) -> str:
    """Return the text of an entity, whose end is the place of its last character."""
    start, end = entity["start"], entity["end"]
    found = text[start : end + 1] if isinstance(start, int) and isinstance(end, int) and start >= 0 else ""
    if not found.strip():
        raise DataError("start and end mark no text of the passage.", where=entity.where)
    return found
