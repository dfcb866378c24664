"""Choose documents so that together they are like a target: importance resampling (DSIR).

Source: Xie et al. 2023, "Data selection for language models via importance resampling", arXiv:2302.03169.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nbllm.core.errors import UserError
from nbllm.core.io import atomic_file
from nbllm.data.arrow_text import Texts
from nbllm.data.pipeline.step import STEPS, CorpusStep, Edits, Rule, Tables
from nbllm.data.quality.characters import character_table
from nbllm.data.quality.inputs import read_texts
from nbllm.data.quality.limits import MOST_UNITS

SMOOTHING = 1.0  # added to the count of every bucket


@dataclasses.dataclass(frozen=True, eq=False)
class ImportanceWeights:
    """How much more often each hashed n-gram occurs in the target: what `importance_weights` returns.

    Attributes:
        log_ratios: float64 (buckets,), the logarithm of the ratio of the two probabilities.
        order: Words of the longest n-gram.
    """

    log_ratios: NDArray[np.float64]
    order: int

    def log_weights(self, texts: Texts) -> NDArray[np.float64]:
        """Return (documents,) the logarithm of how much more probable each is in the target; of no words, 0."""
        from nbllm.data.kernels import word_features as kernels

        result = np.empty(texts.num_documents)
        numbers = np.empty(texts.num_documents, np.int64)
        space = kernels.Space(self.order, self.log_ratios.size, MOST_UNITS)
        kernels.sum_weights(texts, character_table(), space, self.log_ratios, result, numbers)
        return result

    @property
    def fingerprint(self) -> str:
        """Digest of what it computes."""
        return hashlib.sha256(self.log_ratios.tobytes() + bytes([self.order])).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as a safetensors file."""
        from safetensors.numpy import save_file

        with atomic_file(Path(path)) as file:
            save_file({"log_ratios": self.log_ratios, "order": np.array([self.order], np.int64)}, file)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ImportanceWeights:
        """Read what `save` wrote.

        Raises:
            UserError: the file is not such a one.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            held = load_file(path)
            log_ratios, (order,) = held["log_ratios"], held["order"].tolist()
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"These are no importance weights: {error}.", where=path) from error
        buckets = log_ratios.size
        if (
            log_ratios.dtype != np.float64
            or log_ratios.ndim != 1
            or buckets & (buckets - 1)
            or not 1 <= order <= 5
        ):
            raise UserError("These importance weights are damaged.", where=path)
        return cls(log_ratios, order)


def importance_weights(
    target: Any, corpus: Any, *, order: int = 2, buckets: int = 1 << 14, max_documents: int = 100_000
) -> ImportanceWeights:
    """Compare how often hashed n-grams of words occur in a target and in a corpus to choose from.

    Args:
        target: Documents as one wants them: a list, or anything that `nbllm.data.load` takes.
        corpus: Documents to choose from, or some of them.
        order: Words of the longest n-gram, 1 to 5.
        buckets: How many features n-grams are hashed into, a power of two.
        max_documents: How many of each are read, from the beginning.

    Raises:
        UserError: one of them has no words, or a setting is out of range.
    """
    from nbllm.data.kernels import word_features as kernels

    if not 1 <= order <= 5 or buckets < 2 or buckets & (buckets - 1):
        raise UserError(f"order is {order}, it is 1 to 5; buckets is {buckets}, it is a power of two.")
    logs = []
    for source, what in ((target, "documents of the target"), (corpus, "documents to choose from")):
        counts = np.zeros(buckets, np.int64)
        texts = read_texts(source, what, max_documents)
        kernels.count_features(texts, character_table(), kernels.Space(order, buckets, MOST_UNITS), counts)
        if not counts.any():
            raise UserError(f"The {what} have no words.")
        smoothed = counts + SMOOTHING
        logs.append(np.log(smoothed / smoothed.sum()))
    return ImportanceWeights(logs[0] - logs[1], order)


@STEPS.register("importance-resampling")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportanceResampling(CorpusStep):
    """Keeps a sample without replacement, in which a document's chance grows with its weight.

    The documents with the greatest sums of log weight and Gumbel noise are such a sample. The noise of a document
    follows from seed and id alone, so the sample does not depend on the order of the documents nor on how many
    processes there are. Longer documents have larger weights, of either sign.

    Attributes:
        weights: What `importance_weights` returned.
        share: Of the documents, that are kept.
        seed: Another one draws another sample.
    """

    weights: ImportanceWeights = dataclasses.field(repr=False)
    share: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"share is {self.share!r}; it lies above 0 and up to 1.")

    def describe(self) -> dict[str, Any]:
        """Return name and settings, and a digest of the weights."""
        return super().describe() | {"weights": self.weights.fingerprint}

    @property
    def rules(self) -> tuple[Rule, ...]:
        """What it demands; the threshold is on the weight with noise, and known when the step has run."""
        return (Rule("drawn by importance", keep="at least", unit="log weight with noise"),)

    def scan(self, texts: Texts, ids: NDArray[np.int64]) -> pa.Table:
        """Return the log weight of each document, with its noise: 16 bytes each."""
        return pa.table({"id": ids, "key": self.weights.log_weights(texts) + gumbel(ids, self.seed)})

    def solve(self, tables: Tables, workdir: Path) -> pa.Table:
        """Return the documents that are not drawn, with their keys."""
        parts = [(table["id"].to_numpy(), table["key"].to_numpy()) for table in tables]
        ids = np.concatenate([np.empty(0, np.int64), *(part[0] for part in parts)])
        keys = np.concatenate([np.empty(0), *(part[1] for part in parts)])
        best = np.lexsort((ids, -keys))
        left = best[round(self.share * ids.size) :]
        left = left[np.argsort(ids[left])]
        return pa.table({"id": ids[left], "key": keys[left]})

    def apply(self, texts: Texts, ids: NDArray[np.int64], decisions: pa.Table) -> Edits:
        """Drop the documents that are not drawn; the log weights are stored."""
        document = np.searchsorted(ids, decisions["id"].to_numpy()).astype(np.int64)
        places = np.zeros(document.size, np.int64)
        return Edits(
            document=document,
            start=places,
            stop=places,
            rule=np.zeros(document.size, np.int32),
            value=decisions["key"].to_numpy(),
            signals={"importance/log_weight": self.weights.log_weights(texts)},
        )


def gumbel(ids: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Return (documents,) noise of the standard Gumbel distribution, a function of id and seed."""
    from nbllm.data.kernels.windows import mix_all

    bits = mix_all(ids.astype(np.uint64), np.uint64(seed % (1 << 64)))
    uniform = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return np.asarray(-np.log(-np.log(uniform)), np.float64)
