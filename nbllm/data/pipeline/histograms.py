"""How a signal is spread over the documents, and the thresholds that can be moved on it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 48
_TAILS = 0.5, 99.5  # percentiles; what lies beyond is counted in the outermost bins
_FEW = 1000  # documents, of which each has its place
_WIDE = 50.0  # ratio of the ends from which bins are equal in the logarithm


@dataclasses.dataclass(frozen=True)
class Histogram:
    """How many documents have which values.

    Attributes:
        edges: (bins + 1,), ascending; the outermost bins also count what lies beyond.
        counts: (bins,), documents.
        log: Whether the bins are equal in the logarithm.
        missing: Documents for which the signal is not defined or was not measured.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    log: bool
    missing: int


def histogram(values: NDArray[np.float64], thresholds: list[float], *, whole: bool) -> Histogram:
    """Return the histogram of a signal, wide enough for its thresholds.

    Args:
        values: (documents,); NaN where it is not defined.
        thresholds: Limits that must be in its range.
        whole: Whether the values are whole numbers.
    """
    known = values[np.isfinite(values)]
    limits = [limit for limit in thresholds if math.isfinite(limit)]
    tails = _TAILS if len(known) > _FEW else (0, 100)
    ends = [*np.percentile(known, tails)] if len(known) else []
    # A limit far beyond all values, such as 100,000 words, would squeeze them into one bin.
    near = [limit for limit in limits if not ends or limit <= max(4 * ends[1], 4 * abs(ends[0]), 1.0)]
    low, high = min([*ends, *near, *limits[:1]]), max([*ends, *near, *limits[:1]])
    if not high > low:
        low, high = low - 0.5, low + 0.5
    log = bool(low > 0 and high / low > _WIDE)
    if whole and high - low < NUM_BINS:
        edges = np.arange(math.floor(low), math.ceil(high) + 2) - 0.5
    elif log:
        edges = np.geomspace(low, high, NUM_BINS + 1)
    else:
        edges = np.linspace(low, high, NUM_BINS + 1)
    counts, _ = np.histogram(np.clip(known, edges[0], edges[-1]), edges)
    return Histogram(edges, counts.astype(np.int64), log, len(values) - len(known))
