"""Hashes of all runs of words or characters of a text, computed as a window moves over it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.jit import kernel
from nbllm.data.kernels.windows import mix

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, of no other meaning
_SPACE, _CONTINUES, _CONTINUED = np.uint8(32), np.uint8(0xC0), np.uint8(0x80)


@kernel
def next_unit(data: NDArray[np.uint8], place: int, by_word: bool) -> tuple[int, int, np.uint64]:
    """Return the first byte, the byte behind the last, and a hash of the next word or character from `place` on.

    Args:
        data: (bytes,) words with a space between.
        place: Where to begin.
        by_word: Whether a unit is a word; else a character of UTF-8, spaces left out.

    Returns:
        All three 0 where there is no other unit.
    """
    while place < data.shape[0] and data[place] == _SPACE:
        place += 1
    if place >= data.shape[0]:
        return 0, 0, np.uint64(0)
    start, value = place, np.uint64(0)
    while place < data.shape[0] and data[place] != _SPACE:
        if not by_word and place > start and (data[place] & _CONTINUES) != _CONTINUED:
            break
        value = value * _BASE + np.uint64(data[place]) + np.uint64(1)
        place += 1
    return start, place, mix(value)


@kernel
def run_hashes(
    data: NDArray[np.uint8],
    length: int,
    by_word: bool,
    known: NDArray[np.uint64],
    marks: NDArray[np.uint64],
    runs: NDArray[np.int64],
    hashes: NDArray[np.uint64],
) -> int:
    """Find the runs of so many units, all of them or those with a known hash.

    Args:
        data: (bytes,) words with a space between.
        length: Units of a run.
        by_word: Whether units are words; else characters, spaces left out.
        known: (hashes,) sorted; empty: all runs are found.
        marks: (2 ** n,) bits of which `mark_hashes` has set one for each known hash.
        runs: (runs, 2) to fill: the first byte of each run, and the byte behind its last.
        hashes: (runs,) to fill.

    Returns:
        How many there are; those beyond the size of `runs` are not written.
    """
    power = np.uint64(1)  # of the unit that leaves the window
    for _ in range(length):
        power = power * _BASE
    values, starts = np.zeros(length, np.uint64), np.zeros(length, np.int64)
    rolling, seen, count, place = np.uint64(0), 0, 0, 0
    bits = np.uint64(marks.shape[0] * 64 - 1)
    while True:
        start, stop, value = next_unit(data, place, by_word)
        if stop == 0:
            return count
        place = stop
        slot = seen % length
        rolling = rolling * _BASE + value - (values[slot] * power if seen >= length else np.uint64(0))
        values[slot], starts[slot] = value, start
        seen += 1
        if seen < length:
            continue
        if known.shape[0]:
            bit = rolling & bits
            if not (marks[bit >> np.uint64(6)] >> (bit & np.uint64(63))) & np.uint64(1):
                continue
            found = np.searchsorted(known, rolling)
            if found == known.shape[0] or known[found] != rolling:
                continue
        if count < runs.shape[0]:
            runs[count, 0], runs[count, 1] = starts[seen % length], stop
            hashes[count] = rolling
        count += 1


@kernel
def mark_hashes(known: NDArray[np.uint64], marks: NDArray[np.uint64]) -> None:
    """Set a bit for each hash: what has none is not among them.

    Args:
        known: (hashes,).
        marks: (2 ** n,) to set, all 0 before.
    """
    bits = np.uint64(marks.shape[0] * 64 - 1)
    for value in known:
        bit = value & bits
        marks[bit >> np.uint64(6)] |= np.uint64(1) << (bit & np.uint64(63))
