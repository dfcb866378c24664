"""Look for phrases of ASCII in UTF-8 text; upper and lower case are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.jit import inlined, kernel

if TYPE_CHECKING:
    from nbllm.data.arrow_text import Texts


@inlined
def stands_at(data: NDArray[np.uint8], place: int, stop: int, phrases: Texts, index: int) -> int:
    """Return the place behind phrase `index`, in lower case, if it stands at `place`, else -1."""
    first, behind = phrases.offsets[index], phrases.offsets[index + 1]
    if stop - place < behind - first:
        return -1
    for step in range(behind - first):
        byte = data[place + step]
        if 65 <= byte <= 90:
            byte += 32
        if byte != phrases.data[first + step]:
            return -1
    return int(place + behind - first)


@kernel
def any_stands_at(data: NDArray[np.uint8], place: int, stop: int, phrases: Texts) -> int:
    """Return the place behind the first of the phrases that stands at `place`, or -1."""
    for index in range(phrases.valid.shape[0]):
        behind = stands_at(data, place, stop, phrases, index)
        if behind >= 0:
            return behind
    return -1


@kernel
def contains(data: NDArray[np.uint8], start: int, stop: int, phrases: Texts) -> bool:
    """Return whether one of the phrases is in a span."""
    for index in range(phrases.valid.shape[0]):
        first = phrases.data[phrases.offsets[index]]
        for place in range(start, stop):
            if (data[place] == first or data[place] | 32 == first) and stands_at(
                data, place, stop, phrases, index
            ) >= 0:
                return True
    return False
