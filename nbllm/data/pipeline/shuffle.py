"""The documents that share a key, brought together: each column of keys is one task, on whichever worker is free."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nbllm.core.io import atomic_file
from nbllm.data.pipeline.executing import Executor
from nbllm.data.pipeline.step import Tables, shared_file


def shuffle(executor: Executor, files: Sequence[Path], columns: Sequence[str], folder: Path) -> None:
    """Write, for each column of keys, the documents whose key others have too; `Tables.sharing` reads them.

    The tables are exchanged through the folder, which all workers see.

    Args:
        executor: Does the work.
        files: What `CorpusStep.scan` returned, as Arrow stream files.
        columns: Those of uint64 keys.
        folder: Where the result goes.
    """
    if not columns:
        return
    size = sum(file.stat().st_size for file in files) // len(columns)
    work = functools.partial(_bring_together, files=files, folder=folder, size=size)
    executor.map(work, columns, [size] * len(columns), "bringing documents together")


def _bring_together(
    column: str,
    in_order: Callable[..., Any],
    advance: Callable[[int], Any],
    *,
    files: Sequence[Path],
    folder: Path,
    size: int,
) -> None:
    """Sort the keys of one column, and keep those that at least two documents have."""
    tables = Tables(files)
    keys = tables.column(column, np.uint64)
    # Key and place share 64 bits, so that a sort in place needs no second array; what few keys this lets
    # coincide are told apart by whoever compares the documents.
    bits = max(1, keys.size.bit_length())
    low = np.uint64((1 << bits) - 1)
    keys &= ~low
    keys |= np.arange(keys.size, dtype=np.uint64)
    keys.sort()
    same = (keys[1:] ^ keys[:-1]) <= low
    shared = np.zeros(keys.size, np.bool_)
    shared[1:] |= same
    shared[:-1] |= same
    keys = keys[shared]
    ids = tables.column("id", np.int64)[(keys & low).astype(np.int64)]
    with atomic_file(shared_file(folder, column)) as aside, aside.open("wb") as file:
        np.save(file, np.stack([(keys & ~low).view(np.int64), ids]))
    advance(size)
