"""Batches of token windows, as a stateless function of how many were drawn before."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import DataError, UserError
from nbllm.core.seeding import derive
from nbllm.data.token_store import TokenStore


class BatchSource:
    """Cuts seeded random windows out of a token store.

    Every epoch is a fresh pseudo-random permutation of all windows at a fresh phase, so that each token is
    used about once an epoch and rarely at the same place of a window. The window at a position depends on
    the seed and the position alone: not on batch size, number of workers, or what was asked before. A run
    that resumes at position `p` therefore goes on with exactly the text it would have seen.

    Windows cross document boundaries; the end-of-text token between documents is part of the text.

    Args:
        store: The tokens.
        batch_size: Sequences a batch.
        sequence_length: Tokens a sequence.
        seed: Names the order.

    Raises:
        UserError: A size is not positive.
        DataError: The store has fewer tokens than one sequence and its last target.
    """

    def __init__(self, store: TokenStore, *, batch_size: int, sequence_length: int, seed: int = 0) -> None:
        for name, value in (("batch_size", batch_size), ("sequence_length", sequence_length)):
            if value < 1:
                raise UserError(f"{name} must be at least 1, not {value}.")
        if len(store.tokens) <= sequence_length:
            raise DataError(
                f"The text has {len(store.tokens):,} tokens; one sequence needs {sequence_length + 1:,}.",
                where=store.path,
                hint="Use more text, or a smaller sequence_length.",
            )
        self.store = store
        self.batch_size = batch_size
        self.sequence_length = sequence_length
        self.seed = seed
        self._tokens = np.asarray(store.tokens)  # a plain view: Numba need not learn the memmap type
        self._key = np.uint64(derive(seed, "batch order"))

    @property
    def windows_per_epoch(self) -> int:
        """Number of sequences after which every window was drawn once."""
        return len(self._tokens) // self.sequence_length

    def epoch(self, position: int) -> float:
        """Return how many times the text was seen after `position` sequences."""
        return position / self.windows_per_epoch

    def batch(self, position: int, count: int | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the sequences drawn at `position`, `position + 1`, ...

        Args:
            position: Number of sequences drawn before.
            count: Number of sequences; the batch size when not given.

        Returns:
            Inputs and targets, each (batch, position) int64; a target is the token after its input.

        Raises:
            UserError: `position` is negative or `count` not positive.
        """
        from nbllm.data.kernels.windows import cut_windows, window_starts

        count = self.batch_size if count is None else count
        if position < 0 or count < 1:
            raise UserError(f"There is no batch of {count} sequences at position {position}.")
        starts = np.empty(count, np.int64)
        inputs = np.empty((count, self.sequence_length), np.int64)
        targets = np.empty_like(inputs)
        window_starts(position, self.sequence_length, len(self._tokens), self._key, starts)
        cut_windows(self._tokens, starts, inputs, targets)
        return inputs, targets

    def __repr__(self) -> str:
        return (
            f"BatchSource({self.batch_size} x {self.sequence_length} tokens, seed {self.seed}, "
            f"{self.windows_per_epoch:,} sequences an epoch)"
        )
