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
