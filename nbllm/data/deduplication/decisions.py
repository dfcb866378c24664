"""From decisions about documents to edits of a batch."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nbllm.data.pipeline.step import Edits


def documents_of(ids: NDArray[np.int64], decisions: pa.Table) -> NDArray[np.int64]:
    """Return the place in the batch of each decision's document; a batch of several files is in no order of ids."""
    order = np.argsort(ids)
    return np.asarray(order[np.searchsorted(ids, decisions["id"].to_numpy(), sorter=order)])


def drop_documents(ids: NDArray[np.int64], decisions: pa.Table, *, value: str) -> Edits:
    """Return edits that drop the decided documents of a batch, by the first rule.

    Args:
        ids: int64 (document,).
        decisions: Rows of documents of the batch, with the columns `id`, `partner` and `value`, and `jaccard` if known.
        value: The column of what was measured.
    """
    document = documents_of(ids, decisions)
    order = np.argsort(document)
    places = np.zeros(document.size, np.int64)
    return Edits(
        document=document[order],
        start=places,
        stop=places,
        rule=np.zeros(document.size, np.int32),
        value=decisions[value].to_numpy()[order],
        partner=decisions["partner"].to_numpy()[order],
        jaccard=decisions["jaccard"].to_numpy()[order] if "jaccard" in decisions.column_names else None,
    )


def remove_spans(
    ids: NDArray[np.int64],
    decisions: pa.Table,
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
    value: NDArray[np.int64],
) -> Edits:
    """Return edits that remove spans of the documents of a batch, by the first rule.

    Args:
        ids: int64 (document,).
        decisions: (span) with the columns `id` and `partner`; equal to what the partner has.
        start: (span) the first byte within the document.
        stop: (span) the byte behind the last one.
        value: (span) what was measured.
    """
    document = documents_of(ids, decisions)
    order = np.lexsort((start, document))
    return Edits(
        document=document[order],
        start=start[order],
        stop=stop[order],
        rule=np.zeros(document.size, np.int32),
        value=value[order].astype(np.float64),
        partner=decisions["partner"].to_numpy()[order],
        jaccard=np.ones(document.size),
    )
