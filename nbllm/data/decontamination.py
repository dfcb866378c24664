"""The step that drops documents which hold, in part, what a model is to be evaluated on."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np

from nbllm.core.errors import DataError, UserError, nearest
from nbllm.data.arrow_text import Texts
from nbllm.data.overlap import Hit, RunIndex, normalized, texts_of
from nbllm.data.pipeline.step import STEPS, Editor, Edits, Rule

Action = Literal["drop", "tag"]
ACTIONS = ("drop", "tag")
EVALUATION = "evaluation"  # the name of a single set of examples


class Contamination(NamedTuple):
    """Something that a document and an evaluation example have in common.

    Attributes:
        document: The index of the document in the batch.
        start: The first byte of what is in common.
        stop: The byte behind its last.
        evaluation: The name of the set of examples.
        example: The number of the example in it, from 1.
        kind: "words" (13 of them) or "characters" (50 of them).
        run: What is in common, normalised.
    """

    document: int
    start: int
    stop: int
    evaluation: str
    example: int
    kind: str
    run: str


@STEPS.register("decontaminate")
@dataclasses.dataclass(frozen=True)
class Decontaminate(Editor):
    """Finds documents that hold evaluation examples; `nb.data.decontaminate` makes one.

    Attributes:
        names: Of the sets of examples.
        sizes: How many examples each has.
        digest: SHA-256 of all of them.
        action: "drop" or "tag".
        examples: The texts of each example of each set.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    digest: str
    action: Action
    examples: tuple[tuple[str, ...], ...] = dataclasses.field(repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @property
    def rules(self) -> tuple[Rule, ...]:
        """One for each set of examples; the value in the ledger is the number of the example, from 1."""
        if self.action == "tag":
            return ()
        return tuple(Rule(f"decontaminate: {name}", kind="document") for name in self.names)

    @functools.cached_property
    def _index(self) -> RunIndex:
        return RunIndex(self.examples)

    @functools.cached_property
    def _ends(self) -> list[int]:
        return [int(end) for end in np.cumsum(self.sizes)]

    def find(self, texts: Texts) -> list[Contamination]:
        """Return what documents and examples have in common: each example once of each kind in each document."""
        found = []
        for number in np.flatnonzero(texts.valid).tolist():
            raw = cast("bytes", texts[number])
            hits = list(self._index.hits(normalized(raw)))
            for hit, (start, stop) in zip(hits, _places(raw, hits), strict=True):
                place = int(np.searchsorted(self._ends, hit.row, side="right"))
                example = hit.row - (self._ends[place - 1] if place else 0) + 1
                found.append(
                    Contamination(number, start, stop, self.names[place], example, hit.kind, hit.run)
                )
        return sorted(found)

    def edits(self, texts: Texts) -> Edits:
        """Return which documents are dropped; the signals count the examples that each document holds in part."""
        found = self.find(texts)
        touched: dict[str, set[tuple[int, str, int]]] = {"words": set(), "characters": set()}
        for each in found:
            touched[each.kind].add((each.document, each.evaluation, each.example))
        signals = {
            f"decontaminate/{kind}": np.bincount(
                np.array([document for document, *_ in rows], np.int64), minlength=texts.num_documents
            ).astype(np.int32)
            for kind, rows in touched.items()
        }
        if self.action == "tag":
            return Edits.none(signals)
        # Of each document and each set of examples, the first run says why; spans of one document may not overlap.
        first: dict[tuple[int, str], Contamination] = {}
        for each in found:
            first.setdefault((each.document, each.evaluation), each)
        told, behind = [], (-1, 0)
        for each in sorted(first.values()):
            start = max(each.start, behind[1]) if each.document == behind[0] else each.start
            told.append(
                (each.document, start, max(start, each.stop), self.names.index(each.evaluation), each.example)
            )
            behind = (each.document, max(start, each.stop))
        columns = np.array(told, np.int64).reshape(-1, 5).T
        return Edits(
            columns[0],
            columns[1],
            columns[2],
            columns[3].astype(np.int32),
            columns[4].astype(float),
            signals=signals,
        )


def _places(raw: bytes, hits: Sequence[Hit]) -> list[tuple[int, int]]:
    """Return where the runs stand in the text itself: from the first byte of a word to behind the last."""
    if not hits:
        return []
    # A part of the text between spaces becomes some words of the normalised text, which stand one behind the other.
    spans, behind, begin = [], 0, 0
    for part in raw.split():
        begin = raw.index(part, begin)
        words = normalized(part)
        if words:
            spans.append((behind, begin, begin + len(part)))
            behind += len(words) + 1
        begin += len(part)
    firsts = [span[0] for span in spans]
    places = []
    for hit in hits:
        first, last = (int(np.searchsorted(firsts, at, side="right")) - 1 for at in (hit.start, hit.stop - 1))
        places.append((spans[first][1], spans[last][2]))
    return places


def decontaminate(
    evaluation: Any,
    *,
    action: str = "drop",
) -> Decontaminate:
    """Make the step that drops documents which have text in common with evaluation examples.

    In common are 13 words in a row, or 50 characters, whatever the case, the punctuation and the line breaks; or an
    example of 8 to 12 words as a whole.

    Args:
        evaluation: The examples: texts, rows (all texts of a row belong together: question and choices), a data set of
            any columns, a path, or several of these by name: {"mmlu": rows, "mine": "questions.jsonl"}. Those of
            tasks: `nb.evaluation.task_texts(["mmlu", "gsm8k"])`.
        action: "drop" the documents, or "tag" them (columns `decontaminate/words` and `decontaminate/characters`
            count examples).

    Raises:
        UserError: There is no such action.
        DataError: There is no example with text, or the data cannot be read.
    """
    if action not in ACTIONS:
        raise UserError(f"There is no action {action!r}.", hint=nearest(str(action), ACTIONS))
    named = isinstance(evaluation, Mapping) and not hasattr(evaluation, "column_names")
    sets = {
        str(name): _examples(each)
        for name, each in (evaluation if named else {EVALUATION: evaluation}).items()
    }
    empty = [name for name, rows in sets.items() if not any(any(row) for row in rows)]
    if empty or not sets:
        raise DataError(
            f"There is no evaluation example with text{f' in {empty[0]!r}' if empty else ''}.",
            hint="Give texts, rows or a data set: nb.data.decontaminate({'mmlu': rows}).",
        )
    digest = hashlib.sha256(json.dumps(sets, sort_keys=True).encode()).hexdigest()
    sizes = tuple(len(rows) for rows in sets.values())
    every = tuple(row for rows in sets.values() for row in rows)
    return Decontaminate(tuple(sets), sizes, digest, cast("Action", action), every)


def _examples(source: Any) -> list[tuple[str, ...]]:
    """Return the texts of each example."""
    from nbllm.data.texts import as_dataset

    rows: Iterable[Any] = source
    if isinstance(source, str | os.PathLike):
        rows = as_dataset(source)
    elif not isinstance(source, Iterable):
        raise DataError(f"Evaluation examples are texts or rows, not {type(source).__name__}.")
    if hasattr(rows, "with_format"):
        rows = rows.with_format(None)
    return [tuple(texts_of(row)) for row in rows]
