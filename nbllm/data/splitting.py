"""Split a data set into training and validation text, whole documents at a time; a single one by position."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import DataError, UserError
from nbllm.core.seeding import derive
from nbllm.core.terminal import say
from nbllm.data.texts import as_dataset, iterate_texts

if TYPE_CHECKING:
    from datasets import Dataset

ENOUGH = 0.9  # of the share asked for
# Where a single document is cut, the better place first: at most this share of the held-out text before the exact one.
BOUNDARIES = ("\n\n", "\n", " ")
NEAR = 0.1


def split(data: Any, validation: float = 0.1, *, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split a data set by document into training and validation.

    Documents are visited in the order of a keyed hash of their text; each is held out that brings the
    held-out bytes nearer to the share asked for, until that is reached but for a tenth. So the split
    depends on the seed and the texts alone, not on their order; the same text always falls on one side,
    however often it occurs; and a corpus of few, unequal documents still gets about the share asked for.

    A single document is cut by position, and that is said: its end is held out, from a paragraph, a line or a word on.

    Args:
        data: Documents in a column `text`, or anything else that `nbllm.data.load` takes.
        validation: The share of the text (UTF-8 bytes) to hold out, between 0 and 1.
        seed: Names the split.

    Returns:
        Training and validation, both in the order of `data`, both with at least one document.

    Raises:
        UserError: `validation` is not between 0 and 1.
        DataError: There are fewer than two different documents, and no single one that can be cut.
    """
    if isinstance(validation, bool) or not isinstance(validation, int | float) or not 0 < validation < 1:
        raise UserError(f"validation is a share of the text between 0 and 1, not {validation!r}.")
    dataset = as_dataset(data)
    if len(dataset) == 1 and dataset.column_names in (["text"], ["text", "source"]):
        return _cut(dataset, validation)
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
            hint="A text file is read as many documents with sample_by='paragraph'.",
        )
    held = _choose(size_of, validation)
    chosen = {row for rank in held for row in rows_of[rank]}
    training = [row for row in range(len(dataset)) if row not in chosen]
    return dataset.select(training), dataset.select(sorted(chosen))


def _cut(dataset: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """Cut the only document of a data set in two: its last part is held out."""
    text = next(iter(iterate_texts(dataset)))
    place = _place(text, share)
    if not text[:place].strip() or not text[place:].strip():
        raise DataError(
            f"The only document, of {len(text)} characters, is too short to hold a part of it out.",
            hint="Use more text.",
        )
    name = dataset["source"][0] if "source" in dataset.column_names else "the document"
    say(
        f"{name} is one document, so it is split by position: "
        f"its last {len(text) - place:,} of {len(text):,} characters are held out."
    )
    return (
        _one_row(dataset, text[:place], f"{name}, characters 0 to {place}"),
        _one_row(dataset, text[place:], f"{name}, characters {place} to {len(text)}"),
    )


def _place(text: str, share: float) -> int:
    """Return where to cut: near the share asked for, before a paragraph, a line, a word, or anywhere."""
    wanted = len(text) - max(1, round(share * len(text)))
    least = max(1, wanted - round(NEAR * (len(text) - wanted)))
    for boundary in BOUNDARIES:
        found = text.rfind(boundary, least, wanted + len(boundary))
        if found >= 0:
            return found + len(boundary)
    return max(wanted, 1)


def _one_row(dataset: Dataset, text: str, source: str) -> Dataset:
    from datasets import Dataset

    values = {"text": [text], "source": [source]}
    made = Dataset.from_dict({name: values[name] for name in dataset.column_names})
    made.info.description = dataset.info.description
    return made


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
