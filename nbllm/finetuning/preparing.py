"""From examples to rows that a run trains on; what is left out or cut is counted and named."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import DataError, UserError
from nbllm.core.progress import progress
from nbllm.data.sample_store import NO_EXAMPLE, SampleStore, write_samples
from nbllm.finetuning.examples import Example
from nbllm.finetuning.layouts import read_examples
from nbllm.finetuning.mixtures import Mixture
from nbllm.finetuning.rows import rows_of
from nbllm.finetuning.samples import Sample, sample_of, samples_of_pairs
from nbllm.finetuning.tokens import TRAIN_ON, tokenize
from nbllm.objectives.base import IGNORED

_RECENT = 64  # rows that are looked through for space for an example
_MOST_NAMED = 5  # examples of a reason that are named when it is shown


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Examples, ready to be trained on.

    Attributes:
        store: Their rows.
        num_examples: How many are trained on.
        num_trained: How many of their tokens are predicted.
        truncated: Which were longer than a row, and are cut at its end.
        left_out: Which were left out, by the reason. Examples are named by their number in the data, from 0, after the
            name of the data set in a mixture.
    """

    store: SampleStore
    num_examples: int
    num_trained: int
    truncated: tuple[str, ...]
    left_out: dict[str, tuple[str, ...]]

    def __repr__(self) -> str:
        rows = f"{self.num_examples:,} examples in {self.store.num_rows:,} rows, {self.num_trained:,} tokens trained"
        parts = [rows]
        if self.truncated:
            parts.append(f"{_counted(self.truncated)} cut at {self.store.row_length} tokens")
        parts += [f"{_counted(names)} left out: {reason}" for reason, names in self.left_out.items()]
        return "\n".join(parts)


def prepare(
    data: Any,
    tokenizer: Any,
    *,
    length: int,
    train_on: str = "assistant",
    pack: bool = True,
    pairs: bool = False,
) -> Prepared:
    """Encode examples into rows.

    Args:
        data: Examples in the layouts of `nbllm.finetuning.layouts`, from wherever `nbllm.finetuning.rows` reads them;
            or a `Mixture`, or a mapping of names to such.
        tokenizer: A transformers tokenizer.
        length: Tokens in a row; longer examples are cut at the end.
        train_on: As for `tokenize`.
        pack: Whether examples of one data set share a row; they do not see each other.
        pairs: Whether question and answer are two texts, for an encoder-decoder.

    Raises:
        UserError: There is no such `train_on`.
        DataError: Nothing is left to train on; the reasons are counted.
    """
    if train_on not in TRAIN_ON:
        raise UserError(f"train_on is {train_on!r}; it must be one of {', '.join(map(repr, TRAIN_ON))}.")
    mixture = Mixture.of(data)
    names = () if mixture is None else tuple(mixture.sources)
    collected = _Collected(length)
    for name, part in ({"": data} if mixture is None else mixture.sources).items():
        before = len(collected.samples)
        collected.add(
            rows_of(part), _encoder(tokenizer, train_on, pairs=pairs), name, names.index(name) if name else 0
        )
        if len(collected.samples) == before:
            raise DataError(
                f"There is nothing to train on{f' in {name!r}' if name else ''}.",
                hint=collected.reasons() or "Give examples: there are none.",
                where="finetune",
            )
    samples = collected.samples
    rows = _rows(samples, length, pack=pack and not pairs)
    if (rows["weights"] == 1).all():
        del rows["weights"]
    if not names:
        del rows["sources"]
    weights = None if mixture is None else mixture.weights
    store = write_samples(
        rows, row_length=length, num_examples=len(samples), num_bytes=collected.num_bytes,
        vocab_size=len(tokenizer), sources=names,
        shares=() if weights is None else tuple(weights[name] for name in names),
    )  # fmt: skip
    trained = int((rows["targets"] != IGNORED).sum())
    left_out = {reason: tuple(examples) for reason, examples in collected.left_out.items()}
    return Prepared(store, len(samples), trained, tuple(collected.truncated), left_out)


def _encoder(tokenizer: Any, train_on: str, *, pairs: bool) -> Callable[[Example], list[Sample]]:
    if pairs:
        return lambda example: samples_of_pairs(tokenizer, example, train_on=train_on)
    return lambda example: [sample_of(tokenize(tokenizer, example, train_on=train_on))]


class _Collected:
    """Samples of at most `length` tokens, each with the number of its data set, and what became of the rest."""

    def __init__(self, length: int) -> None:
        self.length, self.num_bytes = length, 0
        self.samples: list[tuple[Sample, int]] = []
        self.truncated: list[str] = []
        self.left_out: collections.defaultdict[str, list[str]] = collections.defaultdict(list)

    def add(
        self, rows: Iterable[Any], encode: Callable[[Example], list[Sample]], name: str, source: int
    ) -> None:
        """Add the examples of a data set's rows."""
        total = len(rows) if isinstance(rows, Sized) else 0
        with progress(f"encoding the examples{name and f' of {name}'}", total, "examples") as bar:
            for number, value in enumerate(rows):
                bar.update(1)
                label = f"{name} {number}".strip()
                try:
                    for example in read_examples(value):
                        for sample in encode(example):
                            self._add_sample(sample, label, source)
                        self.num_bytes += example.num_bytes
                except DataError as error:
                    self.left_out[error.what].append(label)

    def reasons(self) -> str:
        """Return why examples were left out."""
        return "; ".join(f"{_counted(names)}: {reason}" for reason, names in self.left_out.items())

    def _add_sample(self, sample: Sample, label: str, source: int) -> None:
        if max(len(sample.inputs), len(sample.targets)) > self.length:
            self.truncated.append(label)
            inputs, targets, weights = sample
            sample = Sample(inputs[: self.length], targets[: self.length], weights[: self.length])
        if (sample.targets != IGNORED).any():
            self.samples.append((sample, source))
        else:
            self.left_out[f"no token to be trained within {self.length} tokens"].append(label)


def _rows(samples: list[tuple[Sample, int]], length: int, *, pack: bool) -> dict[str, NDArray[Any]]:
    """Return the examples in rows: each in the first of the last rows of its data set with space, in their order."""
    rows: list[list[Sample]] = []
    sources: list[int] = []
    free: dict[int, dict[int, int]] = collections.defaultdict(
        dict
    )  # by data set: the last rows, and their space
    for sample, source in samples:
        recent = free[source] if pack else {}
        size = len(sample.inputs)
        place = next((row for row, space in recent.items() if space >= size), None)
        if place is None:
            place = len(rows)
            rows.append([])
            sources.append(source)
            recent[place] = length
            if len(recent) > _RECENT:
                del recent[next(iter(recent))]
        rows[place].append(sample)
        if place in recent:
            recent[place] -= size
    padding = {"inputs": 0, "targets": IGNORED, "examples": NO_EXAMPLE}
    out = {name: np.full((len(rows), length), value, np.int32) for name, value in padding.items()}
    out |= {"weights": np.ones((len(rows), length), np.float32), "sources": np.array(sources, np.int32)}
    for row, packed in enumerate(rows):
        at = 0
        for place, sample in enumerate(packed):
            inputs, targets = (slice(at, at + len(each)) for each in (sample.inputs, sample.targets))
            out["inputs"][row, inputs], out["examples"][row, inputs] = sample.inputs, place
            out["targets"][row, targets], out["weights"][row, targets] = sample.targets, sample.weights
            at = inputs.stop
    return out


def _counted(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _MOST_NAMED else ""
    return f"{len(names):,} (example {', '.join(names[:_MOST_NAMED])}{more})"
