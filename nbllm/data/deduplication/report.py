"""What a search for near-duplicates found, and how well it found it on this very corpus."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

import pyarrow as pa

from nbllm.core.html import fragment, key_values
from nbllm.core.proportions import Interval, wilson
from nbllm.data.deduplication.bands import Bands

METADATA = b"deduplication"  # the key of the decisions' metadata
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Share:
    """A proportion of a sample.

    Attributes:
        successes: How many; not whole where each of the sample counts by a share.
        trials: The size of the sample.
    """

    successes: float
    trials: int

    @property
    def value(self) -> float | None:
        """The proportion; None for an empty sample."""
        return self.successes / self.trials if self.trials else None

    @property
    def interval(self) -> Interval | None:
        """Wilson's interval at 95%."""
        return wilson(self.successes, self.trials, CONFIDENCE) if self.trials else None

    def __str__(self) -> str:
        if self.interval is None:
            return "no such document in the sample"
        low, high = self.interval
        return f"{self.value:.4f} (95% interval {low:.4f} to {high:.4f}; {self.trials:,} documents)"


@dataclasses.dataclass(frozen=True)
class NearDuplicateReport:
    """Counts and measures of a search for near-duplicates; shows itself in a notebook, with the S-curve.

    Attributes:
        documents: Documents searched.
        without_words: Those without a word, which repeat nothing.
        removed: Documents that repeat one that stays.
        clusters: Groups of documents that are joined by near-duplicates.
        compared: Pairs that a band proposed and whose similarity was computed.
        matched: Those of them that reached the threshold.
        left_out: Pairs of very large buckets that were not compared.
        threshold: The least Jaccard similarity.
        bands: Number of bands.
        rows: MinHash values of a band.
        recall: Of the documents of a sample that have near-duplicates, the share of these that were found, by exact
            comparison of each with the whole corpus.
        precision: Of the sample's removed documents, the share whose exact similarity reaches the threshold.
    """

    documents: int
    without_words: int
    removed: int
    clusters: int
    compared: int
    matched: int
    left_out: int
    threshold: float
    bands: int
    rows: int
    recall: Share
    precision: Share

    @classmethod
    def of(cls, metadata: Mapping[bytes, bytes]) -> NearDuplicateReport:
        """Return the report that `NearDuplicates.solve` keeps in the metadata of its decisions."""
        stored = json.loads(metadata[METADATA])
        recall, precision = Share(**stored.pop("recall")), Share(**stored.pop("precision"))
        return cls(recall=recall, precision=precision, **stored)

    def attach(self, decisions: pa.Table) -> pa.Table:
        """Return the decisions with this report in their metadata."""
        return decisions.replace_schema_metadata({METADATA: json.dumps(dataclasses.asdict(self))})

    def _facts(self) -> dict[str, object]:
        return {
            "documents": self.documents,
            "without a word": self.without_words,
            "removed": self.removed,
            "clusters": self.clusters,
            "pairs compared": self.compared,
            "pairs that reached the threshold": self.matched,
            "pairs left out in large buckets": self.left_out,
            "expected recall at the threshold": Bands(self.bands, self.rows).probability(self.threshold),
            "recall, measured": str(self.recall),
            "precision, measured": str(self.precision),
        }

    def __str__(self) -> str:
        lines = [f"Near-duplicates at {self.threshold:g}: {self.bands} bands of {self.rows} rows"]
        return "\n".join([*lines, *(f"  {name}: {value}" for name, value in self._facts().items())])

    def _repr_html_(self) -> str:
        chart = Bands(self.bands, self.rows).chart(self.threshold)
        return fragment(f"<h4>Near-duplicates</h4>{key_values(self._facts())}{chart}")
