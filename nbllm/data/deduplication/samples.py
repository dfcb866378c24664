"""Samples that the ids of documents alone determine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def drawn(ids: NDArray[np.int64], among: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return `count` of the places `among`, those whose hashed ids are the smallest, in that order.

    Args:
        ids: (document).
        among: Places of documents.
        count: How many; all where there are fewer.
    """
    mixed = ids[among].view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return among[np.argsort(mixed ^ (mixed >> np.uint64(29)), kind="stable")[:count]]
