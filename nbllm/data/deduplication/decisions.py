"""From decisions about documents to edits of a batch."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nbllm.data.pipeline.step import Edits


def drop_documents(ids: NDArray[np.int64], decisions: pa.Table, *, value: str) -> Edits:
    """Return edits that drop the decided documents of a batch, by the first rule.

    Args:
        ids: int64 (document,), ascending.
        decisions: Rows of documents of the batch, with the columns `id`, `partner`, `jaccard` and `value`.
        value: The column of what was measured.
    """
    documents = np.searchsorted(ids, decisions["id"].to_numpy())
    places = np.zeros(documents.size, np.int64)
    return Edits(
        document=documents,
        start=places,
        stop=places,
        rule=np.zeros(documents.size, np.int32),
        value=decisions[value].to_numpy(),
        partner=decisions["partner"].to_numpy(),
        jaccard=decisions["jaccard"].to_numpy(),
    )


def remove_spans(ids: NDArray[np.int64], decisions: pa.Table) -> Edits:
    """Return edits that remove the decided spans of the documents of a batch, by the first rule.

    Args:
        ids: int64 (document,), ascending.
        decisions: Spans, with the columns `id`, `start`, `stop`, `partner` and `jaccard`, ordered by `id` and `start`.
    """
    count = decisions.num_rows
    return Edits(
        document=np.searchsorted(ids, decisions["id"].to_numpy()),
        start=decisions["start"].to_numpy(),
        stop=decisions["stop"].to_numpy(),
        rule=np.zeros(count, np.int32),
        value=(decisions["stop"].to_numpy() - decisions["start"].to_numpy()).astype(np.float64),
        partner=decisions["partner"].to_numpy(),
        jaccard=decisions["jaccard"].to_numpy(),
    )
