"""Whole documents packed into rows of one length, so that few are cut and little is padding."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import UserError, nearest
from nbllm.core.quantities import counted
from nbllm.core.terminal import say
from nbllm.data.document_bounds import document_bounds
from nbllm.data.packing import pack
from nbllm.data.sample_store import NO_EXAMPLE, SampleStore, write_samples
from nbllm.data.token_store import TokenStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

STRATEGIES = ("best-fit", "greedy")
NOT_PREDICTED = -100


@dataclasses.dataclass(frozen=True)
class RowPlan:
    """Which piece of which document goes into which row, ordered by (row, document, start).

    Attributes:
        length: Tokens in a row.
        num_rows: Number of rows.
        row: int64 (pieces,).
        document: int64 (pieces,).
        start: int64 (pieces,), the first token of the piece in its document.
        size: int64 (pieces,), its tokens.
        num_split: Documents that are longer than a row, and are cut.
    """

    length: int
    num_rows: int
    row: NDArray[np.int64]
    document: NDArray[np.int64]
    start: NDArray[np.int64]
    size: NDArray[np.int64]
    num_split: int

    @property
    def padding(self) -> float:
        """The share of the rows that no document fills."""
        return 1 - int(self.size.sum()) / max(self.num_rows * self.length, 1)


def plan_rows(sizes: NDArray[np.int64], length: int, strategy: str = "best-fit") -> RowPlan:
    """Return which row each document goes into.

    A document that is longer than a row is cut into full rows and a rest. The result depends on nothing but the
    arguments.

    Args:
        sizes: int64 (documents,), tokens of each; those without any are in no row.
        length: Tokens in a row.
        strategy: "best-fit": the longest documents first, each into the row with the least space that is enough.
            "greedy": in their order, into the current row where they fit, else into a new one.

    Raises:
        UserError: There is no such strategy, or `length` is less than 1.

    Source: Ding et al. 2024, "Fewer truncations improve language modeling", arXiv:2404.10830 (best-fit packing).
    """
    from nbllm.data.kernels.bin_packing import best_fit, greedy

    if strategy not in STRATEGIES:
        raise UserError(f"There is no strategy {strategy!r}.", hint=nearest(strategy, STRATEGIES))
    if length < 1:
        raise UserError(f"length must be at least 1, not {length!r}.")
    counts = -(-sizes // length)
    document = np.repeat(np.arange(len(sizes)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = number * length
    size = np.minimum(sizes[document] - start, length)
    order = np.argsort(-size, kind="stable") if strategy == "best-fit" else np.arange(len(size))
    placed, row = np.empty(len(size), np.int64), np.empty(len(size), np.int64)
    fill = best_fit if strategy == "best-fit" else greedy
    num_rows = fill(np.ascontiguousarray(size[order]), length, placed)
    row[order] = placed
    by_row = np.lexsort((start, document, row))
    return RowPlan(
        length, num_rows, row[by_row], document[by_row], start[by_row], size[by_row], int((counts > 1).sum())
    )


def pack_rows(
    text: Any,
    tokenizer: PreTrainedTokenizerFast,
    *,
    length: int = 1024,
    strategy: str = "best-fit",
    folder: str | Path | None = None,
) -> SampleStore:
    """Pack whole documents into rows, where they do not see each other; for `nb.train(..., objective="sft")`.

    `nb.data.pack` concatenates documents instead, and training cuts the text anywhere. Every token of a document, and
    its end, is predicted once: of a document that is cut, a piece begins with the last token of the piece before.
    A line says how many rows there are, how much of them is padding, and how many documents were cut.

    Args:
        text: Anything that `nb.data.load` takes, or a token store.
        tokenizer: A fast tokenizer with an end-of-text token.
        length: Tokens in a row: the `sequence_length` of the training.
        strategy: "best-fit" or "greedy", see `plan_rows`.
        folder: Instead of the cache.

    Raises:
        DataError: There is no text, or the tokenizer cannot be used.
        UserError: There is no such strategy, or `length` is less than 1.
        CacheError: The folder cannot be written.
    """
    store = text if isinstance(text, TokenStore) else pack(text, tokenizer, folder=folder)
    has_start = store.record.start_id is not None
    sizes = np.diff(store.offsets) - has_start  # what is predicted: all but a token that begins the document
    plan = plan_rows(sizes, length, strategy)
    bounds = document_bounds(tokenizer)
    columns = _columns(
        store, plan, store.eos_id if bounds.start is None else bounds.start, has_start=has_start
    )
    say(
        f"{counted(len(store), 'documents')} in {counted(plan.num_rows, 'rows')} of {length:,} tokens:"
        f" {100 * plan.padding:.1f}% padding; {counted(plan.num_split, 'documents')} longer than a row, cut."
    )
    return write_samples(
        columns,
        row_length=length,
        num_examples=len(plan.row),
        num_bytes=store.num_bytes,
        vocab_size=store.vocab_size,
        folder=None if folder is None else Path(folder),
    )


def _columns(
    store: TokenStore, plan: RowPlan, begin: int, *, has_start: bool
) -> dict[str, NDArray[np.int32]]:
    """Return inputs, targets and numbers of documents, (row, position) each."""
    shape = (plan.num_rows, plan.length)
    inputs = np.zeros(shape, np.int32)
    targets = np.full(shape, NOT_PREDICTED, np.int32)
    examples = np.full(shape, NO_EXAMPLE, np.int32)
    offsets = store.offsets
    row_before, place, number = -1, 0, 0
    pieces = zip(*(each.tolist() for each in (plan.row, plan.document, plan.start, plan.size)), strict=True)
    for row, document, start, size in pieces:
        if row != row_before:
            row_before, place, number = row, 0, 0
        first = int(offsets[document]) + has_start + start
        tokens = store.read(first, first + size)
        before = begin if start == 0 else int(store.read(first - 1, first)[0])
        span = slice(place, place + size)
        targets[row, span] = tokens
        inputs[row, span] = np.concatenate([[before], tokens[:-1]])
        examples[row, span] = number
        place, number = place + size, number + 1
    return {"inputs": inputs, "targets": targets, "examples": examples}
