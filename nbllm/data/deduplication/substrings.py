"""Runs of tokens that occur in the corpus before, by a suffix array in bounded memory.

Source: Lee et al. 2022, "Deduplicating Training Data Makes Language Models Better", arXiv:2107.06499 (ExactSubstr). It
removes every copy of a repeated run; here the first one stays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nbllm.core.errors import UserError
from nbllm.core.progress import progress
from nbllm.data.arrow_text import Texts
from nbllm.data.deduplication.characters import code_point_table
from nbllm.data.deduplication.decisions import documents_of, remove_spans
from nbllm.data.kernels.suffixes import (
    group_first,
    keep_windows,
    merge_pieces,
    place_documents,
    repeated_spans,
    split_groups,
    tokenize,
)
from nbllm.data.pipeline.step import STEPS, CorpusStep, Edits, Rule, Tables

PIECE = 1 << 23  # tokens that are sorted together, at 34 bytes each


@STEPS.register("repeated-substrings")
@dataclasses.dataclass(frozen=True)
class RepeatedSubstrings(CorpusStep):
    """Removes runs of tokens that an earlier text, or the text itself before them, has too.

    A token is a word as it is spelt, or any other character; white space between tokens does not matter. A run is
    removed where each window of `length` tokens in it occurs before, without overlapping it.

    Attributes:
        length: Least tokens of a run.
    """

    length: int = 50

    def __post_init__(self) -> None:
        if not 2 <= self.length <= 10_000:
            raise UserError(f"length is {self.length!r}; a run has 2 to 10,000 tokens.")

    @property
    def rules(self) -> tuple[Rule, ...]:
        """What it removes."""
        return (
            Rule(
                "run of tokens that occurs before",
                keep="at most",
                threshold=self.length,
                unit="tokens",
                kind="span",
            ),
        )

    def scan(self, texts: Texts, ids: NDArray[np.int64]) -> pa.Table:
        """Return the documents' tokens."""
        tokens, _, ends = tokens_of(texts)
        return pa.table(
            {"id": pa.array(ids), "tokens": pa.LargeListArray.from_arrays(pa.array(ends), pa.array(tokens))}
        )

    def solve(self, tables: Tables, workdir: Path) -> pa.Table:
        """Return the repeated runs: `id`, first token (`start`), token behind the last (`stop`), `partner`."""
        ids, begins, corpus = _gather(tables, workdir)
        firsts = _scratch(workdir / "firsts", np.int64, corpus.size)
        merge_pieces(corpus, *self._sorted(corpus, workdir), self.length, firsts)
        spans = np.empty(
            (repeated_spans(firsts, begins, self.length, np.empty((0, 4), np.int64)), 4), np.int64
        )
        repeated_spans(firsts, begins, self.length, spans)
        document, start, stop, source = spans.T
        columns = {
            "id": ids[document],
            "start": np.ascontiguousarray(start),
            "stop": np.ascontiguousarray(stop),
            "partner": ids[np.searchsorted(begins, source, "right") - 1],
        }
        return pa.table(columns)

    def _sorted(
        self, corpus: NDArray[np.uint32], workdir: Path
    ) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
        """Sort the windows of each piece; return them (in a file), the limits of the pieces in them, their starts."""
        starts = range(0, corpus.size, PIECE)
        limits = np.zeros(len(starts) + 1, np.int64)
        path = workdir / "orders"
        with path.open("wb") as file, progress("sorting tokens", corpus.size, " tokens") as bar:
            for piece, start in enumerate(starts):
                own = min(PIECE, corpus.size - start)
                order = sort_windows(
                    np.array(corpus[start : start + own + self.length - 1]), own, self.length
                )
                order.tofile(file)
                limits[piece + 1] = limits[piece] + order.size
                bar.update(own)
        return _mapped(path, np.int32), limits, np.array(starts, np.int64)

    def apply(self, texts: Texts, ids: NDArray[np.int64], decisions: pa.Table) -> Edits:
        """Return edits that remove the repeated runs, each with the white space behind it."""
        _, spans, ends = tokens_of(texts)
        document = documents_of(ids, decisions)
        first = ends[document] + decisions["start"].to_numpy()
        behind = ends[document] + decisions["stop"].to_numpy()
        begins = np.append(spans[:, 0], 0)
        stop = np.where(behind == ends[document + 1], spans[behind - 1, 1], begins[behind])
        return remove_spans(ids, decisions, begins[first], stop, behind - first)


def tokens_of(texts: Texts) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.int64]]:
    """Return the hashed tokens of texts, their bytes (token, 2) within the document, where each document's begin."""
    most = int(texts.offsets[-1] - texts.offsets[0])
    tokens, spans = np.empty(most, np.uint32), np.empty((most, 2), np.int64)
    ends = np.empty(texts.num_documents + 1, np.int64)
    tokenize(*texts, code_point_table(), tokens, spans, ends)
    return tokens[: ends[-1]], spans[: ends[-1]], ends


def sort_windows(tokens: NDArray[np.uint32], own: int, length: int) -> NDArray[np.int32]:
    """Return the positions before `own` at which a window of `length` tokens begins, ordered by its tokens.

    One that equals the one before it is given as -1 - position.
    """
    size = tokens.size
    keys = (tokens.astype(np.uint64) << np.uint64(32)) | np.arange(size, dtype=np.uint64)
    keys.sort()
    order, ranks, opens = np.empty(size, np.int32), np.empty(size, np.int32), np.empty(size, np.bool_)
    group_first(keys, order, ranks, opens)
    scratch = np.empty(size, np.uint64)
    known, together = 1, size
    while known < length and together:
        step = min(known, length - known)
        fresh = ranks.copy()
        together = split_groups(step, order, ranks, fresh, opens, keys, scratch)
        ranks = fresh
        known += step
    return order[: keep_windows(tokens, order, opens, own, length, np.empty(size, np.bool_))]


def _gather(tables: Tables, workdir: Path) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint32]]:
    """Return the ids, ascending, where the tokens of each document begin, and all tokens, in a file."""
    parts = [(table["id"].to_numpy(), np.diff(ends)) for table in tables for _, ends in _lists(table)]
    ids = np.concatenate([np.empty(0, np.int64), *(part for part, _ in parts)])
    sizes = np.concatenate([np.empty(0, np.int64), *(part for _, part in parts)]) + 1
    order = np.argsort(ids, kind="stable")
    begins = np.concatenate([[0], np.cumsum(sizes[order])])
    places = np.empty(ids.size, np.int64)
    places[order] = begins[:-1]
    corpus = _scratch(workdir / "tokens", np.uint32, int(begins[-1]))
    done = 0
    for table in tables:
        for tokens, ends in _lists(table):
            place_documents(tokens, ends, places[done : done + ends.size - 1], corpus)
            done += ends.size - 1
    return ids[order], begins, corpus


def _lists(table: pa.Table) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.int64]]]:
    array = table["tokens"].combine_chunks()
    yield array.values.to_numpy(), array.offsets.to_numpy()


def _scratch(path: Path, dtype: Any, size: int) -> NDArray[Any]:
    """Return zeros in a file, of which only what is written takes place."""
    return np.asarray(np.memmap(path, dtype, "w+", shape=size)) if size else np.empty(0, dtype)


def _mapped(path: Path, dtype: Any) -> NDArray[Any]:
    return np.asarray(np.memmap(path, dtype, "r")) if path.stat().st_size else np.empty(0, dtype)
