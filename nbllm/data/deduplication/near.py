"""Near-duplicate documents: MinHash, bands, exact verification, clusters.

Source: Broder 1997, "On the resemblance and containment of documents"; Lee et al. 2022, arXiv:2107.06499 (its use on
training data).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nbllm.core.errors import UserError
from nbllm.core.progress import progress
from nbllm.data.arrow_text import Texts
from nbllm.data.deduplication.bands import RECALL, Bands, check_bands, choose_bands
from nbllm.data.deduplication.decisions import drop_documents
from nbllm.data.deduplication.report import NearDuplicateReport, Share
from nbllm.data.deduplication.samples import drawn
from nbllm.data.deduplication.signatures import permutations, shingles_of
from nbllm.data.kernels.minhash import band_keys, minhash, set_keys
from nbllm.data.kernels.near_duplicates import (
    NUM_COMPARED,
    NUM_LEFT_OUT,
    NUM_MATCHED,
    ShingleSets,
    compare_sample,
    distinct,
    join_band,
    roots,
    sample_keys,
    settle_clusters,
)
from nbllm.data.pipeline.step import STEPS, CorpusStep, Edits, Rule, Tables


@STEPS.register("near-duplicates")
@dataclasses.dataclass(frozen=True)
class NearDuplicates(CorpusStep):
    """Drops documents whose Jaccard similarity with an earlier one that stays reaches the threshold.

    A document is compared by the set of its shingles, runs of words or characters (see `signatures.shingles_of`).
    Documents that agree in a band of MinHash values are candidates; the exact similarity decides. Similar documents
    form clusters; within each, in the order of ids, a document stays unless it is similar to one that stays.

    Attributes:
        threshold: Least Jaccard similarity of a near-duplicate.
        bands: Number of bands; with `rows`, chosen from `recall` where left out.
        rows: MinHash values of each band.
        recall: The wanted probability of finding a document just at the threshold.
        words: Length of a shingle that begins with a word.
        characters: Length of one that begins with a character of a script without spaces between words.
        sample: Documents that are compared with the whole corpus exactly, to measure recall and precision.
        seed: Names the permutations.
    """

    threshold: float = 0.8
    bands: int | None = None
    rows: int | None = None
    recall: float | None = None
    words: int = 5
    characters: int = 2
    sample: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise UserError(f"threshold is {self.threshold!r}; it lies above 0 and up to 1.")
        if (self.bands is None) != (self.rows is None):
            raise UserError("bands and rows are given together, or neither is, and recall= chooses both.")
        if self.sample < 0:
            raise UserError(f"sample is {self.sample!r}; it is a number of documents.")
        if self.bands is None or self.rows is None:
            recall = RECALL if self.recall is None else self.recall
            chosen = choose_bands(self.threshold, recall)
            object.__setattr__(self, "bands", chosen.bands)
            object.__setattr__(self, "rows", chosen.rows)
            object.__setattr__(self, "recall", recall)
        elif self.recall is not None and self.setting.probability(self.threshold) < self.recall:
            raise UserError(
                f"{self.bands} bands of {self.rows} rows find {self.setting.probability(self.threshold):.2%} of the "
                f"documents of similarity {self.threshold:g}, not {self.recall:.2%}.",
                hint="Leave out recall, or bands and rows.",
            )
        check_bands(self.setting, self.threshold)

    @property
    def setting(self) -> Bands:
        """The bands, which show how likely which similarity is found."""
        assert self.bands is not None and self.rows is not None
        return Bands(self.bands, self.rows)

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns of keys: of the whole set, so that copies are joined first and then left aside; of the bands."""
        return ("set", *(f"band {band}" for band in range(self.setting.bands)))

    @property
    def rules(self) -> tuple[Rule, ...]:
        """What it removes."""
        return (
            Rule("similarity with an earlier document that stays", keep="at most", threshold=self.threshold),
        )

    def scan(self, texts: Texts, ids: NDArray[np.int64]) -> pa.Table:
        """Return each document's shingles and band keys."""
        setting = self.setting
        shingles, ends = shingles_of(texts, words=self.words, characters=self.characters)
        shingles = shingles[: distinct(shingles, ends)]
        signatures = np.empty((ids.size, setting.permutations), np.uint32)
        minhash(shingles, ends, *permutations(setting.permutations, self.seed), signatures)
        keys = np.empty((setting.bands + 1, ids.size), np.uint64)
        set_keys(shingles, ends, keys[0])
        band_keys(signatures, keys[1:])
        columns = {
            "id": pa.array(ids),
            "shingles": pa.LargeListArray.from_arrays(pa.array(ends), pa.array(shingles)),
            **{name: pa.array(keys[i]) for i, name in enumerate(self.keys)},
        }
        return pa.table(columns)

    def solve(self, tables: Tables, workdir: Path) -> pa.Table:
        """Return the removed documents (`id`), whom they repeat (`partner`) and how alike they are (`jaccard`)."""
        corpus = _collect(tables, workdir)
        num_documents = corpus.ids.size
        parents, copies = np.arange(num_documents), np.zeros(num_documents, np.bool_)
        counts = np.zeros(3, np.int64)
        bits = max(1, num_documents.bit_length())
        low = np.uint64((1 << bits) - 1)
        with progress("joining bands", len(self.keys), " bands") as bar:
            for name in self.keys:
                keys, ids = tables.sharing(name)
                documents = np.searchsorted(corpus.ids, ids)
                some = (
                    corpus.sets.sizes[documents] > 0
                )  # those without words share a key, and are not compared
                entries = (keys[some] & ~low) | documents[some].astype(np.uint64)
                entries.sort()
                join_band(entries, bits, corpus.sets, self.threshold, parents, copies, counts)
                bar.update(1)
        roots(parents)
        sizes = np.bincount(parents, minlength=1)
        members = np.flatnonzero(sizes[parents] > 1) if num_documents else np.empty(0, np.int64)
        members = members[np.argsort(parents[members], kind="stable")]
        partners, similarities = np.empty(members.size, np.int64), np.empty(members.size)
        settle_clusters(members, corpus.sets, self.threshold, parents, partners, similarities)
        dropped = partners >= 0
        removed = members[dropped]
        recall, precision = self._measure(corpus, parents, copies, removed, partners[dropped])
        report = NearDuplicateReport(
            documents=num_documents,
            without_words=int((corpus.sets.sizes == 0).sum()),
            removed=removed.size,
            clusters=int((sizes > 1).sum()),
            compared=int(counts[NUM_COMPARED]),
            matched=int(counts[NUM_MATCHED]),
            left_out=int(counts[NUM_LEFT_OUT]),
            threshold=self.threshold,
            bands=self.setting.bands,
            rows=self.setting.rows,
            recall=recall,
            precision=precision,
        )
        columns = {
            "id": corpus.ids[removed],
            "partner": corpus.ids[partners[dropped]],
            "jaccard": similarities[dropped],
        }
        return report.attach(pa.table(columns).sort_by("id"))

    def _measure(
        self,
        corpus: _Corpus,
        parents: NDArray[np.int64],
        copies: NDArray[np.bool_],
        removed: NDArray[np.int64],
        partners: NDArray[np.int64],
    ) -> tuple[Share, Share]:
        """Return recall and precision on a sample, which the ids alone determine."""
        sets = corpus.sets
        sample = np.sort(drawn(corpus.ids, np.flatnonzero((sets.sizes > 0) & ~copies), self.sample))
        found, true = np.empty(sample.size, np.int64), np.empty(sample.size, np.int64)
        keys = np.sort(sample_keys(sets, sample, self.threshold))
        compare_sample(sets, sample, keys, copies, self.threshold, parents, found, true)
        having = true > 0
        recall = Share(float((found[having] / true[having]).sum()), int(having.sum()))
        checked = drawn(corpus.ids[removed], np.arange(removed.size), self.sample)
        right = 0
        for one, other in zip(removed[checked], partners[checked], strict=True):
            shared = np.intersect1d(corpus.shingles(one), corpus.shingles(other)).size
            right += shared / (sets.sizes[one] + sets.sizes[other] - shared) >= self.threshold
        return recall, Share(float(right), checked.size)

    @classmethod
    def report(cls, metadata: Mapping[bytes, bytes]) -> NearDuplicateReport:
        """Return counts, measured recall and precision, the S-curve."""
        return NearDuplicateReport.of(metadata)

    def apply(self, texts: Texts, ids: NDArray[np.int64], decisions: pa.Table) -> Edits:
        """Return edits that drop the removed documents."""
        return drop_documents(ids, decisions, value="jaccard")


class _Corpus(NamedTuple):
    """What is known of all documents, ordered by id.

    Attributes:
        ids: int64 (document,), ascending.
        sets: The shingles, mapped from a file.
    """

    ids: NDArray[np.int64]
    sets: ShingleSets

    def shingles(self, document: int) -> NDArray[np.uint32]:
        """Return one document's shingles."""
        begin = self.sets.begins[document]
        return self.sets.shingles[begin : begin + self.sets.sizes[document]]


def _collect(tables: Tables, workdir: Path) -> _Corpus:
    """Write all shingles behind one another into a file, and return where each document's are."""
    sizes: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    path = workdir / "shingles"
    with path.open("wb") as file:
        for table in tables:
            for chunk in table["shingles"].chunks:
                sizes.append(np.diff(chunk.offsets.to_numpy()))
                file.write(chunk.flatten().to_numpy())
    ids, size = tables.column("id", np.int64), np.concatenate(sizes)
    begins = np.cumsum(size) - size
    order = np.argsort(ids, kind="stable")
    shingles = np.memmap(path, np.uint32, "r") if path.stat().st_size else np.empty(0, np.uint32)
    shingles.flags.writeable = False
    return _Corpus(ids[order], ShingleSets(np.asarray(shingles), begins[order], size[order]))
