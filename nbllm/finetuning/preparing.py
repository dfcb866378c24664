"""From examples to rows that a run trains on; what is left out or cut is counted and said."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import DataError, UserError
from nbllm.core.progress import progress
from nbllm.data.sample_store import NO_EXAMPLE, SampleStore, write_samples
from nbllm.finetuning.examples import read_example, rows_of
from nbllm.finetuning.tokens import TRAIN_ON, tokenize
from nbllm.objectives.base import IGNORED


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Examples, ready to be trained on.

    Attributes:
        store: Their rows.
        num_examples: How many are trained on.
        num_trained: How many of their tokens are predicted.
        truncated: How many were longer than a row, and are cut at its end.
        left_out: How many were left out, by the reason.
    """

    store: SampleStore
    num_examples: int
    num_trained: int
    truncated: int
    left_out: dict[str, int]

    def __repr__(self) -> str:
        cut = f", {self.truncated:,} cut at {self.store.row_length} tokens" if self.truncated else ""
        parts = [
            f"{self.num_examples:,} examples in {self.store.num_rows:,} rows, {self.num_trained:,} tokens trained{cut}"
        ]
        parts += [f"{count:,} left out: {reason}" for reason, count in self.left_out.items()]
        return "\n".join(parts)


def prepare(
    data: Any, tokenizer: Any, *, length: int, train_on: str = "assistant", pack: bool = True
) -> Prepared:
    """Encode examples into rows.

    Args:
        data: Examples in the layouts of `nbllm.finetuning.examples`: a list, a data set, or a name or path that
            `nbllm.data.load` takes.
        tokenizer: A transformers tokenizer.
        length: Tokens in a row; longer examples are cut at the end.
        train_on: As for `tokenize`.
        pack: Whether examples share a row; they do not see each other.

    Raises:
        UserError: There is no such `train_on`.
        DataError: Nothing is left to train on; the reasons are counted.
    """
    if train_on not in TRAIN_ON:
        raise UserError(f"train_on is {train_on!r}; it must be one of {', '.join(map(repr, TRAIN_ON))}.")
    left_out: collections.Counter[str] = collections.Counter()
    pairs: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    num_bytes = truncated = 0
    rows = rows_of(data)
    total = len(rows) if hasattr(rows, "__len__") else 0
    with progress("encoding the examples", total, "examples") as bar:
        for value in rows:
            bar.update(1)
            try:
                example = read_example(value)
                made = tokenize(tokenizer, example, train_on=train_on)
            except DataError as error:
                left_out[error.what] += 1
                continue
            inputs = made.tokens[:-1]
            targets = np.where(made.trained[1:], made.tokens[1:], IGNORED)
            truncated += len(inputs) > length
            inputs, targets = inputs[:length], targets[:length]
            if not (targets != IGNORED).any():
                left_out[f"no token to be trained within {length} tokens"] += 1
                continue
            num_bytes += example.num_bytes
            pairs.append((inputs, targets))
    if not pairs:
        reasons = "; ".join(f"{count:,} of them: {reason}" for reason, count in left_out.items())
        raise DataError(
            "There is nothing to train on.",
            hint=reasons or "Give examples: there are none.",
            where="finetune",
        )
    packed = _rows(pairs, length, pack=pack)
    store = write_samples(
        packed, row_length=length, num_examples=len(pairs), num_bytes=num_bytes, vocab_size=len(tokenizer)
    )
    trained = int((packed["targets"] != IGNORED).sum())
    return Prepared(store, len(pairs), trained, truncated, dict(left_out))


def _rows(
    pairs: list[tuple[NDArray[np.int64], NDArray[np.int64]]], length: int, *, pack: bool
) -> dict[str, NDArray[np.int32]]:
    """Return the examples in rows: each in the first of the last rows that has space for it, in their order."""
    rows: list[list[int]] = []
    free: list[int] = []
    for number, (inputs, _) in enumerate(pairs):
        recent = range(max(0, len(rows) - 64), len(rows)) if pack else range(0)
        place = next((row for row in recent if free[row] >= len(inputs)), None)
        if place is None:
            rows.append([])
            free.append(length)
            place = len(rows) - 1
        rows[place].append(number)
        free[place] -= len(inputs)
    padding = {"inputs": 0, "targets": IGNORED, "examples": NO_EXAMPLE}
    out = {name: np.full((len(rows), length), value, np.int32) for name, value in padding.items()}
    for row, numbers in enumerate(rows):
        at = 0
        for place, number in enumerate(numbers):
            inputs, targets = pairs[number]
            span = slice(at, at + len(inputs))
            out["inputs"][row, span], out["targets"][row, span] = inputs, targets
            out["examples"][row, span] = place
            at += len(inputs)
    return out
