"""Documents that share a window but do not see each other."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from nbllm.nn.masks import causal_mask, restarted_positions, same_document_mask
from nbllm.objectives.base import Batch
from nbllm.objectives.spans import Ints


class Isolation(NamedTuple):
    """How the documents in a window are told apart.

    Attributes:
        end: The token that ends a document.
        begins_next: Whether it is also what the first token of the next document is predicted from; else documents
            begin with a token of their own, which is not predicted.
    """

    end: int
    begins_next: bool

    def documents(self, tokens: Ints) -> Ints:
        """Return the document of each token that a network reads, counted from 0: (row, token)."""
        ends = tokens == self.end
        begins = ends.copy()
        if not self.begins_next:
            begins[:, 1:], begins[:, 0] = ends[:, :-1], False
        numbers: Ints = begins.cumsum(1, dtype=np.int64)
        return numbers


def seen_of(batch: Batch, *, causal: bool) -> dict[str, Tensor]:
    """Return what isolates the documents of a batch, as arguments of a network's `hidden`.

    Args:
        batch: Its "documents", (batch, position), say of which each token is; without, nothing is isolated.
        causal: Whether a token sees only what is before it.
    """
    documents = batch.get("documents")
    if documents is None:
        return {}
    visible = same_document_mask(documents)
    if causal:
        length = documents.shape[1]
        visible = visible & causal_mask(length, length, device=documents.device)
    return {"visible": visible, "positions": restarted_positions(documents)}
