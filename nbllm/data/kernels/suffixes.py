"""Repeated runs of tokens, by suffix arrays of pieces of a corpus that are merged.

The corpus is one array of tokens in the order of its documents' ids, each document followed by `END`. A window is a run
of `length` tokens within a document. Prefix doubling sorts the positions of a piece by their first 1, 2, 4, ...,
`length` tokens: those with the same first h tokens form a group, whose members are told apart by the groups of the
positions h behind them. It stops at `length`: what lies beyond does not matter here, and the work is linear in the
number of tokens but for sorting within groups.

Source: Manber and Myers 1993, "Suffix arrays"; Lee et al. 2022, arXiv:2107.06499, section 4.1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.code_points import CHARACTER, KIND, KIND_SHIFT, MARK, SEPARATOR, SPACE, WORD, decode
from nbllm.data.kernels.jit import kernel
from nbllm.data.kernels.windows import mix

END = np.uint32(0)  # behind each document; no token has it
SEED = np.uint64(0xCBF29CE484222325)
PRIME = np.uint64(0x9FB21C651E98DF25)
S32 = np.uint64(32)
LOW = np.uint64(0xFFFFFFFF)
DIGIT = np.uint64(2047)


@kernel
def tokenize(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    valid: NDArray[np.bool_],
    table: NDArray[np.uint32],
    tokens: NDArray[np.uint32],
    spans: NDArray[np.int64],
    ends: NDArray[np.int64],
) -> None:
    """Write the tokens of documents: words as they are spelt, and every other character but white space.

    Args:
        data: (byte) the documents' bytes.
        offsets: (document + 1) where each begins.
        valid: (document) whether it is no null.
        table: (code point) see `kernels.code_points`.
        tokens: (byte) buffer to fill: a hash of each token, never `END`.
        spans: (byte, 2) buffer to fill: first byte of each token within its document, and the byte behind it.
        ends: (document + 1) buffer to fill: the tokens of document i are `tokens[ends[i]:ends[i + 1]]`.
    """
    write = 0
    ends[0] = 0
    for document in range(valid.shape[0]):
        base, stop = int(offsets[document]), int(offsets[document + 1])
        place = base if valid[document] else stop
        value, opened = SEED, SEPARATOR
        while place < stop:
            begin = place
            point, place = decode(data, place, stop)
            entry = table[point] if point < table.shape[0] else np.uint32(0)
            kind = (entry >> KIND_SHIFT) & KIND
            goes_on = opened != SEPARATOR and (kind == MARK or (kind == WORD and opened == WORD))
            if not goes_on:
                opened = SEPARATOR
                if entry & SPACE:
                    continue
                value = SEED
                spans[write, 0] = begin - base
                if kind == WORD or kind == CHARACTER:
                    opened = kind
                write += 1
            value = (value ^ np.uint64(point)) * PRIME
            tokens[write - 1] = max(np.uint32(mix(value) >> S32), np.uint32(1))
            spans[write - 1, 1] = place - base
        ends[document + 1] = write


@kernel
def place_documents(
    tokens: NDArray[np.uint32],
    ends: NDArray[np.int64],
    places: NDArray[np.int64],
    corpus: NDArray[np.uint32],
) -> None:
    """Copy documents to their places in the corpus, each with an `END` behind.

    Args:
        tokens: (token) those of the documents.
        ends: (document + 1) the tokens of document i are `tokens[ends[i]:ends[i + 1]]`.
        places: (document) where each goes.
        corpus: (position) buffer to fill.
    """
    for document in range(places.shape[0]):
        count = ends[document + 1] - ends[document]
        place = places[document]
        corpus[place : place + count] = tokens[ends[document] : ends[document + 1]]
        corpus[place + count] = END


@kernel
def group_first(
    keys: NDArray[np.uint64], order: NDArray[np.int32], ranks: NDArray[np.int32], opens: NDArray[np.bool_]
) -> None:
    """Group the positions of a piece by their first token.

    Args:
        keys: (position) token in the high half, position in the low one; ascending.
        order: (position) buffer to fill: the positions in this order.
        ranks: (position) buffer to fill: the place in `order` where the group of each position begins.
        opens: (position) buffer to fill: whether a group begins at each place of `order`.
    """
    rank = 0
    for place in range(keys.shape[0]):
        opens[place] = place == 0 or keys[place] >> S32 != keys[place - 1] >> S32
        if opens[place]:
            rank = place
        order[place] = np.int32(keys[place] & LOW)
        ranks[order[place]] = rank


@kernel
def sort_by_rank(
    keys: NDArray[np.uint64], begin: int, stop: int, scratch: NDArray[np.uint64], counts: NDArray[np.int64]
) -> None:
    """Sort keys by their high halves; equal ones keep their order.

    Few are inserted one by one; many are distributed by 11 bits at a time, which is linear whatever they are.

    Args:
        keys: (key) sorted in place between `begin` and `stop`.
        begin: The first to be sorted.
        stop: The one behind the last.
        scratch: (key) as long as `keys`.
        counts: (2,048) scratch.
    """
    if stop - begin <= 64:
        for place in range(begin + 1, stop):
            key = keys[place]
            hole = place
            while hole > begin and keys[hole - 1] >> S32 > key >> S32:
                keys[hole] = keys[hole - 1]
                hole -= 1
            keys[hole] = key
        return
    for shift in (32, 43, 54):
        counts[:] = 0
        for place in range(begin, stop):
            counts[(keys[place] >> np.uint64(shift)) & DIGIT] += 1
        if counts[(keys[begin] >> np.uint64(shift)) & DIGIT] == stop - begin:
            continue  # all are alike in these bits
        total = begin
        for digit in range(counts.shape[0]):
            counts[digit], total = total, total + counts[digit]
        for place in range(begin, stop):
            digit = (keys[place] >> np.uint64(shift)) & DIGIT
            scratch[counts[digit]] = keys[place]
            counts[digit] += 1
        keys[begin:stop] = scratch[begin:stop]


@kernel
def split_groups(
    step: int,
    order: NDArray[np.int32],
    ranks: NDArray[np.int32],
    fresh: NDArray[np.int32],
    opens: NDArray[np.bool_],
    keys: NDArray[np.uint64],
    scratch: NDArray[np.uint64],
) -> int:
    """Tell the members of each group apart by the group of the position `step` behind.

    Args:
        step: At most the number of tokens that the groups share now.
        order: (position) the positions, ordered by group; changed in place.
        ranks: (position) the place in `order` where each one's group begins.
        fresh: (position) equal to `ranks`; set to the groups afterwards.
        opens: (position) whether a group begins at each place of `order`; changed in place.
        keys: (position) scratch.
        scratch: (position) more of it.

    Returns:
        The number of positions that are in groups of two and more.
    """
    size = order.shape[0]
    counts = np.empty(2048, np.int64)
    together = 0
    begin = 0
    while begin < size:
        stop = begin + 1
        while stop < size and not opens[stop]:
            stop += 1
        if stop - begin > 1:
            for place in range(begin, stop):
                behind = order[place] + step
                rank = np.uint64(ranks[behind] + 1) if behind < size else np.uint64(0)
                keys[place] = (rank << S32) | np.uint64(order[place])
            sort_by_rank(keys, begin, stop, scratch, counts)
            rank_place = begin
            for place in range(begin, stop):
                order[place] = np.int32(keys[place] & LOW)
                if place > begin and keys[place] >> S32 != keys[place - 1] >> S32:
                    opens[place] = True
                    rank_place = place
                together += not opens[place] or (
                    place + 1 < stop and keys[place + 1] >> S32 == keys[place] >> S32
                )
                fresh[order[place]] = rank_place
        begin = stop
    return together


@kernel
def keep_windows(
    tokens: NDArray[np.uint32],
    order: NDArray[np.int32],
    opens: NDArray[np.bool_],
    own: int,
    length: int,
    full: NDArray[np.bool_],
) -> int:
    """Move the positions at which a window begins to the front of `order`, and return their number.

    A window that equals the one before it is written as -1 - position.

    Args:
        tokens: (position) of the piece.
        order: (position) the sorted positions; changed in place.
        opens: (position) whether a group begins at each place of `order`.
        own: Only positions before this one are the piece's; the others are the next one's.
        length: Tokens of a window.
        full: (position) scratch.
    """
    count = 0
    for place in range(tokens.shape[0] - 1, -1, -1):
        count = 0 if tokens[place] == END else count + 1
        full[place] = count >= length and place < own
    write = 0
    alone = True  # whether no window of this group has been written
    for place in range(order.shape[0]):
        position = order[place]
        alone = alone or opens[place]
        if full[position]:
            order[write] = position if alone else -1 - position
            write += 1
            alone = False
    return write


@kernel
def common_tokens(corpus: NDArray[np.uint32], one: int, other: int, length: int) -> int:
    """Return how many of the first `length` tokens of two windows agree."""
    for token in range(length):
        if corpus[one + token] != corpus[other + token]:
            return token
    return length


@kernel
def comes_before(corpus: NDArray[np.uint32], one: int, other: int, length: int) -> bool:
    """Return whether a window comes before another: by its tokens, then by its position."""
    token = common_tokens(corpus, one, other, length)
    return one < other if token == length else corpus[one + token] < corpus[other + token]


@kernel
def sink(
    heap: NDArray[np.int64], heads: NDArray[np.int64], held: int, corpus: NDArray[np.uint32], length: int
) -> None:
    """Restore the order of a heap whose top has changed.

    Args:
        heap: (piece) the pieces that have a window left; the first comes before all others.
        heads: (piece) the next window of each.
        held: Pieces in the heap.
        corpus: (position) the tokens.
        length: Tokens of a window.
    """
    node = 0
    while 2 * node + 1 < held:
        child = 2 * node + 1
        if child + 1 < held and comes_before(
            corpus, int(heads[heap[child + 1]]), int(heads[heap[child]]), length
        ):
            child += 1
        if not comes_before(corpus, int(heads[heap[child]]), int(heads[heap[node]]), length):
            return
        heap[node], heap[child] = heap[child], heap[node]
        node = child


@kernel
def merge_pieces(
    corpus: NDArray[np.uint32],
    orders: NDArray[np.int32],
    limits: NDArray[np.int64],
    starts: NDArray[np.int64],
    length: int,
    firsts: NDArray[np.int64],
) -> None:
    """Merge the sorted windows of all pieces, and note for each repeated one where the first of its kind is.

    Equal windows of a piece are taken at once: those of later pieces come behind them.

    A window that overlaps the first of its kind, as within a row of equal tokens, is not noted: what it repeats would
    not be left.

    Args:
        corpus: (position) the tokens.
        orders: (window) the sorted windows of one piece behind those of another, as positions within the piece;
            -1 - position where a window equals the one before it.
        limits: (piece + 1) the windows of piece i are `orders[limits[i]:limits[i + 1]]`.
        starts: (piece) the position of each in the corpus.
        length: Tokens of a window.
        firsts: (position) zeros; set to 1 + the position of the first window that equals the one that begins there.
    """
    num_pieces = starts.shape[0]
    cursors = limits[:-1].copy()
    heads = np.empty(num_pieces, np.int64)
    heap = np.empty(num_pieces, np.int64)
    held = 0
    for piece in range(num_pieces):
        if cursors[piece] == limits[piece + 1]:
            continue
        heads[piece] = starts[piece] + orders[cursors[piece]]
        node = held
        held += 1
        while node > 0 and comes_before(corpus, int(heads[piece]), int(heads[heap[(node - 1) // 2]]), length):
            heap[node] = heap[(node - 1) // 2]
            node = (node - 1) // 2
        heap[node] = piece
    first = -1
    while held > 0:
        piece = int(heap[0])
        window = int(heads[piece])
        if first < 0 or common_tokens(corpus, first, window, length) < length:
            first = window
        elif window >= first + length:
            firsts[window] = first + 1
        cursors[piece] += 1
        while cursors[piece] < limits[piece + 1] and orders[cursors[piece]] < 0:
            window = int(starts[piece]) - 1 - int(orders[cursors[piece]])
            if window >= first + length:
                firsts[window] = first + 1
            cursors[piece] += 1
        if cursors[piece] < limits[piece + 1]:
            heads[piece] = starts[piece] + orders[cursors[piece]]
        else:
            held -= 1
            heap[0] = heap[held]
        sink(heap, heads, held, corpus, length)


@kernel
def repeated_spans(
    firsts: NDArray[np.int64], begins: NDArray[np.int64], length: int, spans: NDArray[np.int64]
) -> int:
    """Write the runs of tokens that repeated windows cover.

    Args:
        firsts: (position) see `merge_pieces`.
        begins: (document + 1) where the tokens of each document begin.
        length: Tokens of a window.
        spans: (span, 4) buffer to fill as far as it goes: document, first token within it, token behind the last,
            position of what the first window repeats.

    Returns:
        The number of spans, which may be more than fit.
    """
    count = 0
    for document in range(begins.shape[0] - 1):
        begin, stop = int(begins[document]), int(begins[document + 1])
        covered = begin - 1  # behind the span written last
        for place in range(begin, stop):
            if firsts[place] == 0:
                continue
            if place > covered:
                count += 1
                if count <= spans.shape[0]:
                    spans[count - 1, 0] = document
                    spans[count - 1, 1] = place - begin
                    spans[count - 1, 3] = firsts[place] - 1
            covered = place + length
            if count <= spans.shape[0]:
                spans[count - 1, 2] = covered - begin
    return count
