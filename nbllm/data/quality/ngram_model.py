"""A model of n-grams of words with interpolated Kneser-Ney smoothing, of bounded memory.

Source: Kneser and Ney 1995, "Improved backing-off for M-gram language modeling"; Chen and Goodman 1999, "An empirical
study of smoothing techniques for language modeling", equation 4.8 with one discount per level; as a filter: Wenzek et
al. 2020, "CCNet", arXiv:1911.00359. Words are those of `nbllm.data.quality.gopher`; what begins a document counts as
the words before it, and its end as a word.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import UserError
from nbllm.core.io import atomic_file
from nbllm.core.progress import progress
from nbllm.data.arrow_text import Texts
from nbllm.data.quality.characters import character_table
from nbllm.data.quality.inputs import read_texts
from nbllm.data.quality.limits import MOST_UNITS

if TYPE_CHECKING:
    from nbllm.data.kernels.ngram_model import Levels

BATCH = 1 << 22  # bytes of text that are counted at once
LEAST_DISCOUNT, MOST_DISCOUNT = 0.1, 0.9  # small corpora have none, or all, of their n-grams once


class _Counted:
    """Different n-grams: the hashes of their last 1 to n words, those of all but the last of these, and counts."""

    def __init__(self, order: int, most: int) -> None:
        self.grams = np.empty((0, order), np.uint64)
        self.contexts = np.empty((0, order), np.uint64)
        self.counts = np.empty(0, np.int64)
        self.most = most

    def add(self, grams: NDArray[np.uint64], contexts: NDArray[np.uint64]) -> None:
        """Count further n-grams; of more than `most` keep the frequent ones, of equals those with the smaller hash."""
        grams, contexts = np.concatenate([self.grams, grams]), np.concatenate([self.contexts, contexts])
        counts = np.concatenate([self.counts, np.ones(len(grams) - len(self.counts), np.int64)])
        _, first, which = np.unique(grams[:, -1], return_index=True, return_inverse=True)
        totals = np.bincount(which.reshape(-1), weights=counts).astype(np.int64)
        if first.size > self.most:
            kept = np.sort(np.argsort(-totals, kind="stable")[: self.most])
            first, totals = first[kept], totals[kept]
        self.grams, self.contexts, self.counts = grams[first], contexts[first], totals

    def level(self) -> tuple[NDArray[Any], ...]:
        """Return keys, counts, contexts, their totals and their types, of the longest n-grams."""
        contexts, which = np.unique(self.contexts[:, -1], return_inverse=True)
        totals = np.bincount(which.reshape(-1), weights=self.counts)
        types = np.bincount(which.reshape(-1)).astype(np.float64)
        return self.grams[:, -1].copy(), self.counts.astype(np.float64), contexts, totals, types

    def shortened(self) -> _Counted:
        """Return the n-grams without their first words, counted by before how many different words they stand."""
        shorter = _Counted(self.grams.shape[1] - 1, self.most)
        shorter.add(self.grams[:, :-1], self.contexts[:, :-1])
        return shorter


def _discount(counts: NDArray[np.float64]) -> float:
    once, twice = np.sum(counts == 1), np.sum(counts == 2)
    return float(np.clip(once / max(once + 2 * twice, 1), LEAST_DISCOUNT, MOST_DISCOUNT))


@dataclasses.dataclass(frozen=True, eq=False)
class NgramModel:
    """What `train_ngram_model` returns.

    Attributes:
        arrays: What the kernels read, by the names of `Levels`.
        order: Words of the longest n-gram.
    """

    arrays: dict[str, NDArray[Any]]
    order: int

    @functools.cached_property
    def levels(self) -> Levels:
        """The arrays as the kernels take them."""
        from nbllm.data.kernels.ngram_model import Levels

        return Levels(**self.arrays)

    def perplexity(self, texts: Texts) -> NDArray[np.float64]:
        """Return (documents,) the perplexity by word; NaN for a document without words."""
        from nbllm.data.kernels import ngram_model as kernels

        result = np.empty(texts.num_documents)
        kernels.perplexity(texts, character_table(), MOST_UNITS, self.levels, result)
        return result

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of what it computes."""
        digest = hashlib.sha256()
        for name in sorted(self.arrays):
            digest.update(name.encode() + self.arrays[name].tobytes())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as a safetensors file."""
        from safetensors.numpy import save_file

        with atomic_file(Path(path)) as file:
            save_file(self.arrays, file, {"format": "nbllm n-gram model"})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NgramModel:
        """Read what `save` wrote.

        Raises:
            UserError: the file is not such a one.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            arrays = load_file(path)
            _check(arrays)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"This is no model of n-grams: {error}.", where=path) from error
        return cls(arrays, arrays["discounts"].size)

    def __repr__(self) -> str:
        sizes = np.diff(self.arrays["key_starts"])
        shown = ", ".join(f"{size:,} {n}-grams" for n, size in enumerate(sizes, 1))
        return f"Kneser-Ney model of {shown}"


def _check(arrays: dict[str, NDArray[Any]]) -> None:
    """Raise ValueError where the kernels could read outside of the arrays."""
    kinds = {"keys": np.uint64, "contexts": np.uint64, "key_starts": np.int64, "context_starts": np.int64}
    for name in (
        "keys",
        "counts",
        "key_starts",
        "contexts",
        "totals",
        "types",
        "context_starts",
        "discounts",
    ):
        if arrays[name].dtype != kinds.get(name, np.float64) or arrays[name].ndim != 1:
            raise ValueError(f"{name} is of the wrong kind")
    order = arrays["discounts"].size
    for starts, held in (
        ("key_starts", ("keys", "counts")),
        ("context_starts", ("contexts", "totals", "types")),
    ):
        bounds = arrays[starts]
        whole = bounds.size == order + 1 and bounds[0] == 0 and (np.diff(bounds) > 0).all()
        if not order or not whole or any(arrays[name].size != bounds[-1] for name in held):
            raise ValueError(f"{starts} does not fit the other arrays")


def train_ngram_model(texts: Any, *, order: int = 3, max_ngrams: int = 2_000_000) -> NgramModel:
    """Count the n-grams of texts that are as one wants them.

    Memory is about `(16 * order + 8) * max_ngrams` bytes, and several times that while n-grams are added. Where there
    are more different n-grams, the rarest are forgotten after every 4 MB of text.

    Args:
        texts: Documents: a list, or anything that `nbllm.data.load` takes.
        order: Words of the longest n-gram, 1 to 5.
        max_ngrams: How many different n-grams of that length are kept.

    Raises:
        UserError: there is no text, or a setting is out of range.
    """
    from nbllm.data.kernels import ngram_model as kernels

    if not 1 <= order <= kernels.MOST_ORDER or max_ngrams < 1:
        raise UserError(f"order is {order}; it is 1 to {kernels.MOST_ORDER}. max_ngrams is at least 1.")
    documents = read_texts(texts, "texts to count")
    counted = _Counted(order, max_ngrams)
    start = 0
    with progress("counting n-grams", documents.num_documents, " documents") as bar:
        while start < documents.num_documents:
            limit = documents.offsets[start] + BATCH
            stop = max(start + 1, int(np.searchsorted(documents.offsets, limit, side="right")) - 1)
            part = Texts(documents.data, documents.offsets[start : stop + 1], documents.valid[start:stop])
            places = kernels.count_places(part, character_table(), MOST_UNITS)
            grams, contexts = np.empty((places, order), np.uint64), np.empty((places, order), np.uint64)
            kernels.collect(part, character_table(), order, MOST_UNITS, grams, contexts)
            counted.add(grams, contexts)
            bar.update(stop - start)
            start = stop
    if not counted.counts.size:
        raise UserError("There are no texts to count: every document is null.")
    levels = [counted.level()]
    discounts = [_discount(levels[0][1])]
    for _ in range(order - 1):
        counted = counted.shortened()
        levels.insert(0, counted.level())
        discounts.insert(0, _discount(levels[0][1]))
    columns = [np.concatenate(column) for column in zip(*levels, strict=True)]
    names = ("keys", "counts", "contexts", "totals", "types")
    arrays = dict(zip(names, columns, strict=True))
    arrays["key_starts"] = np.cumsum([0, *(level[0].size for level in levels)]).astype(np.int64)
    arrays["context_starts"] = np.cumsum([0, *(level[2].size for level in levels)]).astype(np.int64)
    arrays["discounts"] = np.array(discounts)
    return NgramModel(arrays, order)
