"""Contamination: which examples stand, in part, in what a model was trained on, and the figures without them.

What is in common, `nbllm.data.overlap` finds: runs of 13 words and of 50 characters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import UserError
from nbllm.core.quantities import counted
from nbllm.core.report.figures import Measurement
from nbllm.core.report.sections import Measurements, Section, Table
from nbllm.data.overlap import CHARACTERS, SHORT_WORDS, WORDS, RunIndex, normalized, texts_of
from nbllm.evaluation.columns import take
from nbllm.evaluation.documents import documents
from nbllm.evaluation.examples import Source, load_examples, sources
from nbllm.evaluation.statistics import clusters_of, estimate

if TYPE_CHECKING:
    from nbllm.evaluation.examples import Examples
    from nbllm.evaluation.measuring import Measured
    from nbllm.evaluation.metrics.base import Metric
    from nbllm.evaluation.remote import Remote
    from nbllm.evaluation.tasks.base import Task
    from nbllm.lm import LM

_LISTED, _SHOWN = 20, 120


@dataclasses.dataclass(frozen=True)
class Overlap:
    """What of each example stands in the training text.

    Attributes:
        words: (row), whether a run of 13 words does, or a whole text of 8 to 12 words.
        characters: (row), whether a run of 50 characters does.
        runs: By row, the first run that was found, and the number of the document, from 1.
        num_documents: Documents of the training text.
    """

    words: NDArray[np.bool_]
    characters: NDArray[np.bool_]
    runs: Mapping[int, tuple[str, int]]
    num_documents: int

    @property
    def touched(self) -> NDArray[np.bool_]:
        """Whether either run was found: (row)."""
        return self.words | self.characters

    def part(self, start: int, stop: int) -> Overlap:
        """Return the overlap of some consecutive examples."""
        runs = {row - start: found for row, found in self.runs.items() if start <= row < stop}
        return dataclasses.replace(
            self, words=self.words[start:stop], characters=self.characters[start:stop], runs=runs
        )


def training_texts(lm: LM | Remote, training: Any) -> list[str]:
    """Return the documents that a model was trained on.

    Args:
        lm: The model, whose tokenizer turns a run's tokens back into text.
        training: A run, or anything that the task "perplexity" takes as data.

    Raises:
        UserError: The run does not say what it was trained on.
        DataError: The text is gone, or there is none.
    """
    from nbllm.runs.run import Run
    from nbllm.training.validation import open_store

    if isinstance(training, Run):
        record = training.record.get("data")
        kept = record.get("train") if isinstance(record, Mapping) else None
        if not isinstance(kept, Mapping):
            raise UserError(
                f"The run {training.name!r} does not say what it was trained on.",
                hint="Give the text: nb.evaluate(..., training=dataset).",
            )
        training = open_store(kept)
    return documents(Source(lm, training))[0]


def task_texts(tasks: str | Task | Sequence[str | Task], data: Any = None) -> dict[str, list[list[str]]]:
    """Return the texts of the examples of tasks, for `nbllm.data.decontaminate`.

    Args:
        tasks: Names of tasks, or tasks.
        data: As for `nbllm.evaluate`: what they measure, or by the names of tasks; None: their own examples.

    Returns:
        By task, the texts of each example; without worked examples, as for contamination.

    Raises:
        UserError: There is no such task.
        DataError: There is no example, or the task cannot read the data.
    """
    from nbllm.evaluation.tasks import TASKS

    named = [tasks] if isinstance(tasks, str) or not isinstance(tasks, Sequence) else tasks
    chosen = [TASKS[task]() if isinstance(task, str) else task for task in named]
    found: dict[str, list[list[str]]] = {}
    no_model = cast("LM", None)  # only "perplexity" asks for one, whose texts are documents and no examples
    for task, source in sources(no_model, chosen, data, None):
        rows = load_examples(task, source, None).rows
        found.setdefault(task.name, []).extend(texts_of(task.asked(row)) for row in rows)
    return found


def contamination(lm: LM | Remote, training: Any, jobs: Sequence[tuple[Task, Examples]]) -> list[Overlap]:
    """Return which examples of several data sets stand, in part, in what a model was trained on, which is read once.

    Args:
        lm: The model.
        training: As for `training_texts`.
        jobs: Each task with its examples.
    """
    parts = [[texts_of(task.asked(row)) for row in examples.rows] for task, examples in jobs]
    whole = find_overlap([each for part in parts for each in part], training_texts(lm, training))
    ends = np.cumsum([len(part) for part in parts]).tolist()
    return [whole.part(end - len(part), end) for part, end in zip(parts, ends, strict=True)]


def find_overlap(examples: Sequence[Sequence[str]], documents: Iterable[str]) -> Overlap:
    """Return which examples have a run of words or of characters in common with training text.

    Args:
        examples: The texts of each, as question and choices. Runs may go on from one to the next; a text of 8 to 12
            words of its own is a run, too.
        documents: The training text; it is read once.
    """
    index = RunIndex(examples)
    found = {kind: np.zeros(len(examples), np.bool_) for kind in ("words", "characters")}
    runs: dict[int, tuple[str, int]] = {}
    number = 0
    for number, text in enumerate(documents, start=1):
        for hit in index.hits(normalized(text)):
            found[hit.kind][hit.row] = True
            runs.setdefault(hit.row, (hit.run, number))
    return Overlap(found["words"], found["characters"], runs, number)


def contamination_sections(measured: Measured, overlap: Overlap) -> list[Section]:
    """Return the figures of all examples, of the untouched and of the touched ones, and which these are.

    Args:
        measured: What was measured.
        overlap: Of its examples.
    """
    overlap = overlap.part(0, len(measured))
    touched = overlap.touched
    count, unit = int(touched.sum()), measured.task.unit
    words, characters = int(overlap.words.sum()), int(overlap.characters.sum())
    note = (
        f"Of {counted(len(touched), unit)}, {count:,} ({count / max(1, len(touched)):.1%}) have text in common with "
        f"{counted(overlap.num_documents, 'documents')} of training text: {words:,} a run of {WORDS} words (or a whole "
        f"text of {SHORT_WORDS} to {WORDS - 1}), {characters:,} a run of {CHARACTERS} characters, both without case "
        "and punctuation."
    )
    figures = []
    for metric, figure in zip(measured.task.metrics, measured.measurements, strict=True):
        if metric.of_model and metric.resampled:
            figures.append(dataclasses.replace(figure, metric="", name=f"{figure.name}, all {unit}"))
            for kind, kept in (("untouched", ~touched), ("touched", touched)):
                if kept.any() and count:
                    figures.append(_subset(measured, metric, figure, kind, kept))
    sections: list[Section] = [
        Measurements(title=f"Contamination: {measured.task.label}", note=note, measurements=tuple(figures))
    ]
    if count:
        rows = [
            (row + 1, number, run if len(run) <= _SHOWN else f"{run[: _SHOWN - 1]}…")
            for row, (run, number) in sorted(overlap.runs.items())[:_LISTED]
        ]
        what = f"the first {_LISTED} of {count:,}" if count > _LISTED else f"all {count:,}"
        folded = f"Which {unit} have text in common with the training text: {what}"
        sections.append(Table(header=("example", "document", "in common"), rows=tuple(rows), folded=folded))
    return sections


def _subset(
    measured: Measured, metric: Metric, figure: Measurement, kind: str, kept: NDArray[np.bool_]
) -> Measurement:
    columns = take(measured.columns, np.flatnonzero(kept))
    clusters = clusters_of(columns, measured.task.cluster)
    found = estimate(metric, columns, measured.config, clusters)
    return dataclasses.replace(
        figure,
        name=f"{figure.name}, {int(kept.sum()):,} {kind}",
        metric="",
        value=found.value,
        interval=found.interval,
        method=found.method,
        signature=f"{figure.signature}|subset:{kind}",
    )
