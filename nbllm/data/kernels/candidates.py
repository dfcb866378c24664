"""Where in a text personal data may stand: what expressions are run on, so that all other text is read only once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.jit import kernel

# What makes a candidate: an "@", digits close together, dots or colons as in an address, a word that goes with secrets.
AT, DIGITS, ADDRESS, MARK = 0, 1, 2, 3
NUM_FAMILIES = 4
# Bytes before and after it that may belong to it, with the words before it that say what it is.
BEFORE = np.array([384, 96, 64, 64], np.int64)
AFTER = np.array([320, 64, 48, 512], np.int64)

NUM_DIGITS, DIGITS_WITHIN = 6, 24
DOTS_WITHIN, COLONS_WITHIN, ASSIGNED_WITHIN = 4, 8, 16
_AT, _DOT, _COLON, _EQUALS, _ZERO, _NINE = 64, 46, 58, 61, 48, 57


@kernel
def _lower(byte: int) -> int:
    return byte + 32 if 65 <= byte <= 90 else byte


@kernel
def _stands_at(
    data: NDArray[np.uint8],
    place: int,
    end: int,
    marks: NDArray[np.uint8],
    first: int,
    last: int,
    assigned: bool,
) -> bool:
    """Whether a mark, in letters of either case, stands at `place`; `assigned`: with ":" or "=" soon after it."""
    if end - place < last - first:
        return False
    for offset in range(last - first):
        if _lower(data[place + offset]) != marks[first + offset]:
            return False
    if not assigned:
        return True
    after = place + last - first
    for following in range(after, min(end, after + ASSIGNED_WITHIN)):
        if data[following] == _COLON or data[following] == _EQUALS:
            return True
    return False


@kernel
def _is_mark(
    data: NDArray[np.uint8],
    place: int,
    end: int,
    marks: NDArray[np.uint8],
    mark_offsets: NDArray[np.int64],
    assigned: NDArray[np.bool_],
    first: int,
) -> bool:
    """Whether a mark stands at `place`, of those from `first` on that begin with the same two letters."""
    one, other = marks[mark_offsets[first]], marks[mark_offsets[first] + 1]
    for mark in range(first, assigned.shape[0]):
        if marks[mark_offsets[mark]] != one or marks[mark_offsets[mark] + 1] != other:
            return False
        if _stands_at(data, place, end, marks, mark_offsets[mark], mark_offsets[mark + 1], assigned[mark]):
            return True
    return False


@kernel
def _family(byte: int, at: int, digits: NDArray[np.int64], seen: NDArray[np.int64]) -> int:
    """Return the family of the candidate that a byte completes, or -1.

    Args:
        byte: The byte.
        at: Its place in the document.
        digits: (NUM_DIGITS,), the places of the last digits.
        seen: Digits so far, dots close together so far, the place of the last dot, that of the last colon.
    """
    if _ZERO <= byte <= _NINE:
        digits[seen[0] % NUM_DIGITS] = at
        seen[0] += 1
        if seen[0] >= NUM_DIGITS and at - digits[seen[0] % NUM_DIGITS] < DIGITS_WITHIN:
            return DIGITS
    elif byte == _AT:
        return AT
    elif byte == _COLON:
        last, seen[3] = seen[3], at
        if at - last <= COLONS_WITHIN:
            return ADDRESS
    elif byte == _DOT:
        seen[1] = seen[1] + 1 if at - seen[2] <= DOTS_WITHIN else 1
        seen[2] = at
        if seen[1] >= 3:
            return ADDRESS
    return -1


@kernel
def _write(
    windows: NDArray[np.int64],
    count: int,
    document: int,
    family: int,
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
) -> None:
    if count < windows.shape[0]:
        windows[count, 0] = document
        windows[count, 1] = family
        windows[count, 2] = start[family]
        windows[count, 3] = stop[family]


@kernel
def candidate_windows(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    valid: NDArray[np.bool_],
    marks: NDArray[np.uint8],
    mark_offsets: NDArray[np.int64],
    assigned: NDArray[np.bool_],
    begins: NDArray[np.int16],
    windows: NDArray[np.int64],
) -> int:
    """Find the windows of documents that hold a candidate. The time is linear in the bytes.

    Windows of one family that touch are one.

    Args:
        data: (bytes,) of all documents.
        offsets: (documents + 1,).
        valid: (documents,).
        marks: (bytes,) the words that go with secrets, of two letters at least, one behind the other, in small letters,
            sorted.
        mark_offsets: (marks + 1,), where each begins.
        assigned: (marks,), whether a mark counts only with ":" or "=" soon after it.
        begins: (256 * 256,), the first mark that begins with two bytes, in letters of either case; -1 for none.
        windows: (windows, 4) to fill: document, family, first byte within the document, the byte behind the last.

    Returns:
        How many windows there are; those beyond the size of `windows` are not written.
    """
    counts = np.zeros(256, np.bool_)  # whether a byte may complete a candidate
    counts[_ZERO : _NINE + 1] = True
    counts[_AT] = counts[_DOT] = counts[_COLON] = True
    count = 0
    start, stop = np.zeros(NUM_FAMILIES, np.int64), np.zeros(NUM_FAMILIES, np.int64)
    digits, seen = np.zeros(NUM_DIGITS, np.int64), np.zeros(4, np.int64)
    for document in range(valid.shape[0]):
        if not valid[document]:
            continue
        begin, end = offsets[document], offsets[document + 1]
        start[:] = -1
        seen[0] = seen[1] = 0
        seen[2] = seen[3] = -DIGITS_WITHIN
        for place in range(begin, end):
            byte = data[place]
            family, at = -1, place - begin
            if counts[byte]:
                family = _family(byte, at, digits, seen)
            elif place + 1 < end:
                first = begins[np.intp(byte) * 256 + data[place + 1]]
                if first >= 0 and _is_mark(data, place, end, marks, mark_offsets, assigned, first):
                    family = MARK
            if family < 0:
                continue
            if start[family] >= 0 and at - BEFORE[family] > stop[family]:
                _write(windows, count, document, family, start, stop)
                count += 1
                start[family] = -1
            if start[family] < 0:
                start[family] = max(0, at - BEFORE[family])
            stop[family] = min(end - begin, at + AFTER[family])
        for family in range(NUM_FAMILIES):
            if start[family] >= 0:
                _write(windows, count, document, family, start, stop)
                count += 1
    return count
