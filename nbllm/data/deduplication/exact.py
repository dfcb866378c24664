"""Exactly equal documents, paragraphs or lines."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nbllm.core.errors import UserError
from nbllm.data.arrow_text import Texts
from nbllm.data.deduplication.characters import code_point_table, composed
from nbllm.data.deduplication.decisions import drop_documents, remove_spans
from nbllm.data.kernels.units import DOCUMENT, LINE, PARAGRAPH, find_units, hash_units
from nbllm.data.pipeline.step import STEPS, CorpusStep, Edits, Rule, Tables

LEVELS = {"document": DOCUMENT, "paragraph": PARAGRAPH, "line": LINE}
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("first", pa.uint64()),
        ("second", pa.uint64()),
    ]
)
MOST_AT_A_TIME = 4_000_000  # parts that are sorted together, at 40 bytes each


@STEPS.register("exact-duplicates")
@dataclasses.dataclass(frozen=True)
class ExactDuplicates(CorpusStep):
    """Removes documents, paragraphs or lines that are equal to an earlier one of the corpus.

    Attributes:
        level: "document", "paragraph" (lines up to a blank one) or "line".
        normalize: Whether texts are compared in NFC, each run of white space as one space, and without any around
            them; else byte by byte.
        min_characters: Paragraphs and lines that are shorter stay: braces and headings recur in different texts.
    """

    level: Literal["document", "paragraph", "line"] = "document"
    normalize: bool = True
    min_characters: int = 30

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise UserError(f"level is {self.level!r}; it is one of {', '.join(LEVELS)}.")
        if self.min_characters < 0:
            raise UserError(f"min_characters is {self.min_characters!r}; it is a number of characters.")

    @property
    def rules(self) -> tuple[Rule, ...]:
        """What it removes."""
        if self.level == "document":
            return (Rule("equal to an earlier document"),)
        return (
            Rule(f"{self.level} of an earlier document", kind="line" if self.level == "line" else "span"),
        )

    def scan(self, texts: Texts, ids: NDArray[np.int64]) -> pa.Table:
        """Return where the parts of the documents are, and a hash of each."""
        units = self._units(texts)
        compared = composed(texts) if self.normalize else texts
        parts = units if compared is texts else self._units(compared)
        assert len(parts) == len(units), "normal form moves no line break"
        hashes, lengths = np.empty((len(units), 2), np.uint64), np.empty(len(units), np.int64)
        hash_units(
            compared.data, compared.offsets, code_point_table(), parts, self.normalize, hashes, lengths
        )
        if self.level != "document":
            long = lengths >= self.min_characters
            units, hashes = units[long], hashes[long]
        columns = [ids[units[:, 0]], units[:, 1], units[:, 2], hashes[:, 0], hashes[:, 1]]
        return pa.table([pa.array(column) for column in columns], schema=SCHEMA)

    def _units(self, texts: Texts) -> NDArray[np.int64]:
        begin, end = texts.offsets[0], texts.offsets[-1]
        most = texts.num_documents + int(np.count_nonzero(texts.data[begin:end] == ord("\n")))
        units = np.empty((most, 3), np.int64)
        return units[: find_units(*texts, code_point_table(), LEVELS[self.level], units)]

    def solve(self, tables: Tables, workdir: Path) -> pa.Table:
        """Return the parts that repeat an earlier one (`id`, `start`, `stop`), and whose they repeat (`partner`)."""
        num_units = sum(table.num_rows for table in tables)
        num_shares = max(1, -(-num_units // MOST_AT_A_TIME))
        found = [_repeated(_share(tables, share, num_shares)) for share in range(num_shares)]
        repeated = pa.concat_tables(found).sort_by([("id", "ascending"), ("start", "ascending")])
        return repeated.append_column("jaccard", pa.array(np.ones(repeated.num_rows)))

    def apply(self, texts: Texts, ids: NDArray[np.int64], decisions: pa.Table) -> Edits:
        """Return edits that remove the repeated parts."""
        if self.level == "document":
            return drop_documents(ids, decisions, value="jaccard")
        start, stop = decisions["start"].to_numpy(), decisions["stop"].to_numpy()
        return remove_spans(ids, decisions, start, stop, stop - start)


def _share(tables: Tables, share: int, num_shares: int) -> pa.Table:
    """Return the parts whose hash falls into one of several shares of about the same size."""
    parts = [
        table.filter(pa.array(table["first"].to_numpy() % np.uint64(num_shares) == share)) for table in tables
    ]
    return pa.concat_tables([SCHEMA.empty_table(), *parts])


def _repeated(units: pa.Table) -> pa.Table:
    """Return those parts whose hash a smaller (id, start) has too, with the id of the smallest."""
    ids, starts = units["id"].to_numpy(), units["start"].to_numpy()
    first, second = units["first"].to_numpy(), units["second"].to_numpy()
    order = np.lexsort((starts, ids, second, first))
    begins = np.ones(order.size, np.bool_)
    begins[1:] = (np.diff(first[order]) != 0) | (np.diff(second[order]) != 0)
    partners = ids[order[np.flatnonzero(begins)[np.cumsum(begins) - 1]]] if order.size else ids
    repeated = order[~begins]
    return (
        units.select(["id", "start", "stop"])
        .take(pa.array(repeated))
        .append_column("partner", pa.array(partners[~begins]))
    )
