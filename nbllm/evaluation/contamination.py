"""Contamination: which examples stand, in part, in what a model was trained on, and the figures without them.

Two rules of two papers are applied side by side, to texts that are normalised first (compatibility forms, no case, no
punctuation): a run of 13 words in common, and a run of 50 characters (letters and digits) in common.

Source: Brown et al. 2020, "Language Models are Few-Shot Learners", arXiv:2005.14165, appendix C (13 words); OpenAI
2023, "GPT-4 Technical Report", arXiv:2303.08774, appendix C (50 characters, of which three runs an example are looked
for there; here all are).
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import UserError
from nbllm.core.quantities import counted
from nbllm.core.report.figures import Measurement
from nbllm.core.report.sections import Measurements, Section, Table
from nbllm.evaluation.columns import take
from nbllm.evaluation.documents import documents
from nbllm.evaluation.examples import Source
from nbllm.evaluation.statistics import clusters_of, estimate

if TYPE_CHECKING:
    from nbllm.evaluation.examples import Examples
    from nbllm.evaluation.measuring import Measured
    from nbllm.evaluation.metrics.base import Metric
    from nbllm.evaluation.remote import Remote
    from nbllm.evaluation.tasks.base import Task
    from nbllm.lm import LM

WORDS, CHARACTERS = 13, 50
_SHORT_WORDS = 8  # a text of fewer words is found only as a run of characters, or with what stands beside it
_BASE, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)  # odd, of no other meaning
_WORD = re.compile(r"[^\W_]+")
_LISTED, _SHOWN = 20, 120
Hashes = NDArray[np.uint64]


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


def texts_of(example: Any) -> list[str]:
    """Return all texts of an example, in the order of its fields."""
    if isinstance(example, str):
        return [example]
    if isinstance(example, Mapping):
        return [text for value in example.values() for text in texts_of(value)]
    if isinstance(example, (list, tuple)):
        return [text for value in example for text in texts_of(value)]
    return []


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
    units = _Units(examples)
    coder = _Coder()
    looked = [_Runs(kind, length, units, coder) for kind, length in units.kinds()]
    found = {kind: np.zeros(len(examples), np.bool_) for kind in ("words", "characters")}
    runs: dict[int, tuple[str, int]] = {}
    number = 0
    for number, text in enumerate(documents, start=1):
        words = _words(text)
        values = {"words": words, "characters": [*"".join(words)]}
        codes = {kind: coder(each) for kind, each in values.items()}
        for index in looked:
            for row, run in index.hits(values[index.kind], codes[index.kind], found[index.kind]):
                runs.setdefault(row, (run, number))
    return Overlap(found["words"], found["characters"], runs, number)


class _Units:
    """What is looked for: by kind and length of a run, sequences of words or characters, each with its example."""

    def __init__(self, examples: Sequence[Sequence[str]]) -> None:
        self._found: dict[tuple[str, int], list[tuple[int, list[str]]]] = {}
        for row, texts in enumerate(examples):
            parts = [_words(text) for text in texts]
            whole = [word for part in parts for word in part]
            for words in [whole, *(part for part in parts if len(part) < min(WORDS, len(whole)))]:
                if len(words) >= _SHORT_WORDS:
                    self._found.setdefault(("words", min(WORDS, len(words))), []).append((row, words))
            self._found.setdefault(("characters", CHARACTERS), []).append((row, [*"".join(whole)]))

    def kinds(self) -> list[tuple[str, int]]:
        """Return every kind and length of a run."""
        return list(self._found)

    def __getitem__(self, kind: tuple[str, int]) -> list[tuple[int, list[str]]]:
        return self._found[kind]


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class _Coder:
    """Gives each word or character a number that looks random."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    def __call__(self, units: Sequence[str]) -> Hashes:
        """Return the number of each: (unit)."""
        codes = self._codes
        values = np.array([codes.setdefault(unit, len(codes) + 1) for unit in units], np.uint64)
        values *= _MIX
        return values ^ (values >> np.uint64(32))


class _Runs:
    """All runs of one kind and length, sorted by their hashes.

    Args:
        kind: "words" or "characters".
        length: Of a run.
        units: What is looked for.
        coder: Numbers the words or characters.
    """

    def __init__(self, kind: str, length: int, units: _Units, coder: _Coder) -> None:
        self.kind, self._length, self._units = kind, length, units[kind, length]
        hashes, places = [np.empty(0, np.uint64)], [np.empty((0, 2), np.int64)]
        for number, (_, each) in enumerate(self._units):
            found = _hashes(coder(each), length)
            hashes.append(found)
            places.append(np.stack([np.full(len(found), number), np.arange(len(found))], axis=1))
        together = np.concatenate(hashes)
        order = np.argsort(together, kind="stable")
        self._hashes, self._places = together[order], np.concatenate(places)[order]

    def hits(self, units: list[str], codes: Hashes, found: NDArray[np.bool_]) -> Iterator[tuple[int, str]]:
        """Yield each example with a run that a document has too, once; equal hashes are compared as texts.

        Args:
            units: Of the document.
            codes: Their numbers.
            found: (row), the examples that were found; those that are yielded are added.
        """
        hashes = _hashes(codes, self._length)
        if not len(self._hashes) or not len(hashes):
            return
        first = np.searchsorted(self._hashes, hashes)
        known = self._hashes[np.minimum(first, len(self._hashes) - 1)] == hashes
        for start in np.flatnonzero(known).tolist():
            place = int(first[start])
            while place < len(self._hashes) and self._hashes[place] == hashes[start]:
                number, begin = (int(each) for each in self._places[place])
                row, own = self._units[number]
                run = units[start : start + self._length]
                if not found[row] and own[begin : begin + self._length] == run:
                    found[row] = True
                    yield row, (" " if self.kind == "words" else "").join(run)
                place += 1


def _hashes(codes: Hashes, length: int) -> Hashes:
    """Return the hash of each run of `length` units: (run)."""
    out = np.zeros(max(0, len(codes) - length + 1), np.uint64)
    for offset in range(length):
        out = out * _BASE + codes[offset : offset + len(out)]
    return out


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
        f"text of {_SHORT_WORDS} to {WORDS - 1}), {characters:,} a run of {CHARACTERS} characters, both without case "
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
