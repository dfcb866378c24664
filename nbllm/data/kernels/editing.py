"""Cut spans out of texts, and copy spans of texts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.jit import kernel


@kernel
def _is_inside(data: NDArray[np.uint8], place: int, end: int) -> bool:
    """Return whether `place` lies inside a character of UTF-8, not on its border."""
    return place < end and (data[place] & 0xC0) == 0x80


@kernel
def first_bad_edit(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    document: NDArray[np.int64],
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
) -> int:
    """Return the first edit that is out of range or order, overlaps the one before, or cuts a character; or -1.

    Args:
        data: uint8 (bytes,).
        offsets: int64 (documents + 1,).
        document: int64 (edits,), ascending.
        start: int64 (edits,), counted from the document's first byte.
        stop: int64 (edits,), likewise.
    """
    for edit in range(document.shape[0]):
        doc = document[edit]
        if doc < 0 or doc >= offsets.shape[0] - 1 or (edit > 0 and doc < document[edit - 1]):
            return edit
        behind = stop[edit - 1] if edit > 0 and doc == document[edit - 1] else np.int64(0)
        end = offsets[doc + 1]
        if start[edit] < behind or stop[edit] < start[edit] or stop[edit] > end - offsets[doc]:
            return edit
        if _is_inside(data, offsets[doc] + start[edit], end) or _is_inside(
            data, offsets[doc] + stop[edit], end
        ):
            return edit
    return -1


@kernel
def apply_edits(  # noqa: PLR0913 - three columns of each side, and the edits
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    document: NDArray[np.int64],
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
    new_data: NDArray[np.uint8],
    new_offsets: NDArray[np.int64],
    out: NDArray[np.uint8],
    out_offsets: NDArray[np.int64],
) -> None:
    """Write the documents with each span replaced.

    Args:
        data: uint8 (bytes,).
        offsets: int64 (documents + 1,).
        document: int64 (edits,), as `first_bad_edit` accepts them.
        start: int64 (edits,).
        stop: int64 (edits,).
        new_data: uint8 (bytes,), the replacements.
        new_offsets: int64 (edits + 1,).
        out: uint8 buffer to fill, of the size that results.
        out_offsets: int64 (documents + 1,) buffer to fill.
    """
    edit = np.intp(0)
    write = np.int64(0)
    for doc in range(offsets.shape[0] - 1):
        out_offsets[doc] = write
        read, end = offsets[doc], offsets[doc + 1]
        while edit < document.shape[0] and document[edit] == doc:
            for place in range(read, offsets[doc] + start[edit]):
                out[write] = data[place]
                write += 1
            for place in range(new_offsets[edit], new_offsets[edit + 1]):
                out[write] = new_data[place]
                write += 1
            read = offsets[doc] + stop[edit]
            edit += 1
        for place in range(read, end):
            out[write] = data[place]
            write += 1
    out_offsets[offsets.shape[0] - 1] = write


@kernel
def shortened_stops(
    data: NDArray[np.uint8], start: NDArray[np.int64], stop: NDArray[np.int64], most: int
) -> NDArray[np.int64]:
    """Return where each span of `data` ends when it is cut to `most` bytes, on the border of a character."""
    out = np.empty(stop.shape[0], np.int64)
    for span in range(stop.shape[0]):
        end = stop[span]
        if end - start[span] > most:
            end = start[span] + most
            while end > start[span] and _is_inside(data, end, data.shape[0]):
                end -= 1
        out[span] = end
    return out


@kernel
def copy_spans(
    data: NDArray[np.uint8],
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
    out: NDArray[np.uint8],
    out_offsets: NDArray[np.int64],
) -> None:
    """Write spans of `data` one behind the other.

    Args:
        data: uint8 (bytes,).
        start: int64 (spans,).
        stop: int64 (spans,).
        out: uint8 buffer to fill, as long as all spans together.
        out_offsets: int64 (spans + 1,) buffer to fill.
    """
    write = np.int64(0)
    for span in range(start.shape[0]):
        out_offsets[span] = write
        for place in range(start[span], stop[span]):
            out[write] = data[place]
            write += 1
    out_offsets[start.shape[0]] = write


@kernel
def _following(lead: int) -> int:
    """Return how many bytes follow the first one of a character; -1 where none begins so."""
    if lead < 0x80:
        return 0
    if 0xC2 <= lead <= 0xDF:
        return 1
    if 0xE0 <= lead <= 0xEF:
        return 2
    if 0xF0 <= lead <= 0xF4:
        return 3
    return -1


@kernel
def _second_fits(lead: int, second: int) -> bool:
    """Return whether the second byte makes no long form, surrogate or number beyond U+10FFFF."""
    low, high = 0x80, 0xBF
    if lead == 0xE0:
        low = 0xA0
    elif lead == 0xED:
        high = 0x9F
    elif lead == 0xF0:
        low = 0x90
    elif lead == 0xF4:
        high = 0x8F
    return low <= second <= high


@kernel
def valid_utf8(data: NDArray[np.uint8], offsets: NDArray[np.int64], out: NDArray[np.bool_]) -> None:
    """Write whether each document is UTF-8.

    Args:
        data: uint8 (bytes,).
        offsets: int64 (documents + 1,).
        out: bool (documents,) buffer to fill.

    Source: The Unicode Standard, table 3-7.
    """
    for document in range(offsets.shape[0] - 1):
        place, end = offsets[document], offsets[document + 1]
        good = True
        while place < end and good:
            more = _following(data[place])
            good = more >= 0 and place + more < end
            if good and more > 0:
                good = _second_fits(data[place], data[place + 1])
                for follow in range(2, more + 1):
                    good = good and (data[place + follow] & 0xC0) == 0x80
            place += more + 1
        out[document] = good
