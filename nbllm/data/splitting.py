"""Part a data set into training and validation text, whole documents at a time."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from nbllm.core.errors import DataError, UserError
from nbllm.core.seeding import derive
from nbllm.data.texts import iterate_texts

if TYPE_CHECKING:
    from datasets import Dataset

ENOUGH = 0.9  # of the share asked for


def split(dataset: Dataset, validation: float = 0.1, *, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Part a data set by document into training and validation.

    Documents are visited in the order of a keyed hash of their text; each is held out that brings the
    held-out bytes nearer to the share asked for, until that is reached but for a tenth. So the split
    depends on the seed and the texts alone, not on their order; the same text always falls on one side,
    however often it occurs; and a corpus of few, unequal documents still gets about the share asked for.

    Args:
        dataset: Documents in a column `text`.
        validation: The share of the text (UTF-8 bytes) to hold out, between 0 and 1.
        seed: Names the split.

    Returns:
        Training and validation, both in the order of `dataset`, both with at least one document.

    Raises:
        UserError: `validation` is not between 0 and 1.
        DataError: There are fewer than two different documents.
    """
    if not 0 < validation < 1:
        raise UserError(f"validation is a share of the text between 0 and 1, not {validation!r}.")
    key = derive(seed, "split").to_bytes(8, "little")
    rows_of: dict[bytes, list[int]] = {}
    size_of: dict[bytes, int] = {}
    for row, text in enumerate(iterate_texts(dataset)):
        data = text.encode()
        rank = hashlib.blake2b(data, key=key, digest_size=16).digest()
        rows_of.setdefault(rank, []).append(row)
        size_of[rank] = size_of.get(rank, 0) + len(data)
    if len(rows_of) < 2:
        raise DataError(
            f"A split by document needs two different documents; this data set has {len(rows_of)}.",
            hint="A text file can be cut into documents: load(path, sample_by='paragraph').",
        )
    held = _choose(size_of, validation)
    chosen = {row for rank in held for row in rows_of[rank]}
    training = [row for row in range(len(dataset)) if row not in chosen]
    return dataset.select(training), dataset.select(sorted(chosen))


def _choose(size_of: dict[bytes, int], share: float) -> list[bytes]:
    """Return the documents to hold out: never none, never all."""
    order = sorted(size_of)
    target = share * sum(size_of.values())
    held: list[bytes] = []
    taken = 0
    for rank in order:
        if taken >= ENOUGH * target:  # going on would fill the rest with the very shortest documents
            break
        if len(held) < len(order) - 1 and abs(taken + size_of[rank] - target) < abs(taken - target):
            held.append(rank)
            taken += size_of[rank]
    return held or [min(order, key=lambda rank: (size_of[rank], rank))]
