"""Fewer points of a curve that draw the same picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def downsample(y: NDArray[Any], most: int, x: NDArray[Any] | None = None) -> NDArray[np.intp]:
    """Return the indices of at most `most` points that draw the same line as all; of few points all are kept.

    Of each of `most / 4` parts the first, the last, the lowest and the highest point are kept; NaN, which breaks the
    line, only where it is the first or the last of its part.

    Args:
        y: (point), what is drawn.
        most: At least 4.
        x: (point), rising: the parts are equally wide in it. `None`: the parts hold equally many points.

    Returns:
        (kept point), rising.

    Source: Jugel et al. 2014, "M4: A Visualization-Oriented Time Series Data Aggregation", VLDB 7(10).
    """
    count, parts = len(y), most // 4
    if count <= most:
        return np.arange(count)
    if x is None:
        part = np.arange(count) * parts // count
    else:
        width = x.max() - x.min() or 1.0
        part = np.minimum((x - x.min()) / width * parts, parts - 1).astype(np.intp)
    first = np.flatnonzero(np.diff(part, prepend=part[0] - 1))
    sizes = np.diff(first, append=count)
    number = np.repeat(np.arange(len(first)), sizes)
    # Sorted by part, then value: the lowest comes first and the highest last; NaN comes after all.
    low = np.lexsort((y, number))[first]
    high = np.lexsort((-y, number))[first]
    return np.unique(np.concatenate([first, first + sizes - 1, low, high]))
