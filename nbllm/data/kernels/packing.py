"""Concatenate encoded documents."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nbllm.data.kernels.jit import kernel


@kernel
def append_documents(
    ids: NDArray[np.int64],
    lengths: NDArray[np.int64],
    end_id: int,
    vocab_size: int,
    tokens: NDArray[np.unsignedinteger],
    ends: NDArray[np.int64],
) -> int:
    """Copy documents into `tokens`, each followed by `end_id`.

    Args:
        ids: (token) the documents' ids without a break between them.
        lengths: (document) number of ids of each.
        end_id: The id that ends a document.
        vocab_size: Ids must lie in `[0, vocab_size)`.
        tokens: (token + document) buffer to fill.
        ends: (document) buffer to fill: the place in `tokens` behind each document's `end_id`.

    Returns:
        -1, or the place in `ids` of the first id out of range; the buffers are then unfinished.
    """
    read = np.intp(0)
    write = np.intp(0)
    for document in range(lengths.shape[0]):
        for _ in range(lengths[document]):
            token = ids[read]
            if token < 0 or token >= vocab_size:
                return int(read)
            tokens[write] = token
            read += 1
            write += 1
        tokens[write] = end_id
        write += 1
        ends[document] = write
    return -1
