"""Documents that say the same, by the embeddings of an encoder.

Source: Abbas et al. 2023, "SemDeDup: Data-efficient learning at web-scale through semantic deduplication",
arXiv:2303.09540. It keeps the document of a group that is farthest from the cluster's centre; here the first one stays,
as with all duplicates.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nbllm.core.errors import UserError
from nbllm.core.html import fragment, key_values
from nbllm.core.progress import progress
from nbllm.data.arrow_text import Texts
from nbllm.data.deduplication.clusters import spherical_kmeans
from nbllm.data.deduplication.decisions import drop_documents
from nbllm.data.deduplication.report import METADATA, Share
from nbllm.data.deduplication.samples import drawn
from nbllm.data.model_digest import model_digest
from nbllm.data.pipeline.step import STEPS, CorpusStep, Edits, Rule, Tables

if TYPE_CHECKING:
    import torch

DOCUMENTS_PER_CLUSTER = 1000
BLOCK = 1024  # documents compared at a time


class Embedder(Protocol):
    """What embeds texts: `nbllm.LM` of an encoder."""

    model: torch.nn.Module

    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        """Return a vector of length 1 for each text, (text, hidden)."""
        ...


@STEPS.register("semantic-duplicates")
@dataclasses.dataclass(frozen=True)
class SemanticDuplicates(CorpusStep):
    """Drops documents whose embedding has a cosine of at least the threshold with that of an earlier one that stays.

    Documents are compared within clusters of similar embeddings. Of a long document the model reads the beginning only;
    one without text is kept. How texts are batched changes the last bits of an embedding, so a cosine that lies on the
    threshold to seven digits may be decided either way.

    Attributes:
        model: What embeds, an `nbllm.LM` whose model is an encoder.
        threshold: Least cosine of a duplicate.
        clusters: Number of clusters; one for a thousand documents if not given.
        sample: Documents that are compared with the whole corpus, to measure recall.
    """

    model: Embedder = dataclasses.field(repr=False)
    threshold: float = 0.95
    clusters: int | None = None
    sample: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise UserError(f"threshold is {self.threshold!r}; it lies above 0 and up to 1.")
        if self.clusters is not None and self.clusters < 1:
            raise UserError(f"clusters is {self.clusters!r}; it is at least 1.")
        if self.sample < 0:
            raise UserError(f"sample is {self.sample!r}; it is a number of documents.")

    def describe(self) -> dict[str, Any]:
        """Return name and settings, and a digest of the model's weights."""
        return super().describe() | {"model": model_digest(self.model.model)}

    @property
    def rules(self) -> tuple[Rule, ...]:
        """What it removes."""
        return (Rule("cosine with an earlier document that stays", keep="at most", threshold=self.threshold),)

    def scan(self, texts: Texts, ids: NDArray[np.int64]) -> pa.Table:
        """Return the embeddings of the documents that have text."""
        documents = map(texts.__getitem__, range(texts.num_documents))
        strings = [document.decode("utf-8", "replace") for document in documents]
        places = np.array([i for i, text in enumerate(strings) if text.strip()], np.int64)
        vectors = self.model.embed([strings[i] for i in places]).float().numpy()
        flat = pa.array(np.ascontiguousarray(vectors).ravel())
        column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        return pa.table({"id": pa.array(ids[places]), "vector": column})

    def solve(self, tables: Tables, workdir: Path) -> pa.Table:
        """Return the removed documents (`id`), whom they repeat (`partner`), the `cosine`."""
        ids, vectors = _gather(tables, workdir)
        count = self.clusters or max(1, round(ids.size / DOCUMENTS_PER_CLUSTER))
        mixed = drawn(ids, np.arange(ids.size), ids.size)
        clusters = spherical_kmeans(vectors, mixed, min(count, ids.size))
        partners, cosines = np.full(ids.size, -1), np.zeros(ids.size)
        members = np.split(np.argsort(clusters, kind="stable"), np.cumsum(np.bincount(clusters))[:-1])
        with progress("comparing clusters", len(members), " clusters") as bar:
            for group in members:
                self._compare(vectors, group, partners, cosines)
                bar.update(1)
        removed = np.flatnonzero(partners >= 0)
        report = SemanticReport(
            ids.size, removed.size, len(members), self.threshold, self._measure(vectors, clusters, mixed)
        )
        columns = {
            "id": ids[removed],
            "partner": ids[partners[removed]],
            "cosine": cosines[removed],
        }
        return pa.table(columns).replace_schema_metadata({METADATA: json.dumps(dataclasses.asdict(report))})

    def _compare(
        self,
        vectors: NDArray[np.float32],
        group: NDArray[np.int64],
        partners: NDArray[np.int64],
        cosines: NDArray[np.float64],
    ) -> None:
        """Let each document of a cluster, in the order of ids, stay unless it is like one that stays."""
        staying: list[int] = []
        for begin in range(0, group.size, BLOCK):
            block = group[begin : begin + BLOCK]
            part = vectors[block]
            earlier, within = part @ vectors[staying].T, part @ part.T
            repeats = np.any(earlier >= self.threshold, axis=1)
            new: list[int] = []
            for row, document in enumerate(block):
                if repeats[row]:
                    place = int((earlier[row] >= self.threshold).argmax())
                    partners[document], cosines[document] = staying[place], earlier[row, place]
                elif (like := np.flatnonzero(within[row, new] >= self.threshold)).size:
                    place = new[like[0]]
                    partners[document], cosines[document] = block[place], within[row, place]
                else:
                    new.append(row)
            staying += block[new].tolist()

    def _measure(
        self, vectors: NDArray[np.float32], clusters: NDArray[np.int64], mixed: NDArray[np.int64]
    ) -> Share:
        """Return the share of a sample's duplicates that are in the same cluster."""
        sample = mixed[: self.sample]
        found, true = np.zeros(sample.size), np.zeros(sample.size)
        for begin in range(0, len(vectors), BLOCK):
            alike = vectors[sample] @ vectors[begin : begin + BLOCK].T >= self.threshold
            alike &= sample[:, None] != np.arange(begin, begin + alike.shape[1])
            same = clusters[sample][:, None] == clusters[begin : begin + BLOCK]
            true += alike.sum(1)
            found += (alike & same).sum(1)
        having = true > 0
        return Share(float((found[having] / true[having]).sum()), int(having.sum()))

    @classmethod
    def report(cls, metadata: Mapping[bytes, bytes]) -> SemanticReport:
        """Return counts and the measured recall."""
        stored = json.loads(metadata[METADATA])
        return SemanticReport(**stored | {"recall": Share(**stored["recall"])})

    def apply(self, texts: Texts, ids: NDArray[np.int64], decisions: pa.Table) -> Edits:
        """Return edits that drop the removed documents."""
        return drop_documents(ids, decisions, value="cosine")


@dataclasses.dataclass(frozen=True)
class SemanticReport:
    """Counts and measures of a search for documents that say the same; shows itself in a notebook.

    Attributes:
        documents: Documents with text.
        removed: Those that repeat one that stays.
        clusters: Number of clusters.
        threshold: Least cosine.
        recall: Of the documents of a sample that are like others, the share of these that are in the same cluster, by
            comparison with the whole corpus.
    """

    documents: int
    removed: int
    clusters: int
    threshold: float
    recall: Share

    def _facts(self) -> dict[str, object]:
        return {
            "documents": self.documents,
            "removed": self.removed,
            "clusters": self.clusters,
            "least cosine": self.threshold,
            "recall, measured": str(self.recall),
        }

    def __str__(self) -> str:
        return "\n".join(
            ["Semantic duplicates", *(f"  {name}: {value}" for name, value in self._facts().items())]
        )

    def _repr_html_(self) -> str:
        return fragment(f"<h4>Semantic duplicates</h4>{key_values(self._facts())}")


def _gather(tables: Tables, workdir: Path) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the ids, ascending, and the embeddings in their order, mapped from a file."""
    ids = np.concatenate([np.empty(0, np.int64), *(table["id"].to_numpy() for table in tables)])
    if ids.size == 0:
        return ids, np.empty((0, 1), np.float32)
    places = np.empty(ids.size, np.int64)
    places[np.argsort(ids, kind="stable")] = np.arange(ids.size)
    width = next(iter(tables)).schema.field("vector").type.list_size
    vectors = np.memmap(workdir / "vectors", np.float32, "w+", shape=(ids.size, width))
    done = 0
    for table in tables:
        for chunk in table["vector"].chunks:
            part = chunk.flatten().to_numpy().reshape(-1, width)
            vectors[places[done : done + len(part)]] = part
            done += len(part)
    return np.sort(ids), np.asarray(vectors)
