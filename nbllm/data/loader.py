"""Windows of tokens, as a stateless function of how many were drawn before."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import DataError, UserError
from nbllm.core.seeding import derive
from nbllm.data.sample_store import RowSource, SampleStore
from nbllm.data.token_store import TokenStore


def make_source(
    store: TokenStore | SampleStore, *, length: int, overlap: int = 0, seed: int = 0
) -> WindowSource | RowSource:
    """Return what draws from a store: windows of `length` tokens of a text, or the rows of examples."""
    if isinstance(store, SampleStore):
        return RowSource(store, seed=seed)
    return WindowSource(store, length=length, overlap=overlap, seed=seed)


class WindowSource:
    """Draws seeded random windows from a token store.

    Every epoch is a fresh pseudo-random permutation of all windows at a fresh offset, so that each token is
    used about once an epoch and rarely at the same place in a window. The window at a position depends on
    the seed and the position alone: not on batch size, number of workers, or what was drawn before. A run
    that resumes at position `p` therefore goes on with exactly the text it would have seen.

    Windows cross document boundaries; the end-of-text token between documents is part of the text.

    Args:
        store: The tokens.
        length: Tokens in a window.
        overlap: Tokens that a window shares with the window after it in the text.
        seed: Names the order.

    Raises:
        UserError: `overlap` is negative or not less than `length`.
        DataError: The store has fewer tokens than one window.
    """

    def __init__(self, store: TokenStore, *, length: int, overlap: int = 0, seed: int = 0) -> None:
        if not 0 <= overlap < length:
            raise UserError(f"A window of {length} tokens cannot overlap the next by {overlap}.")
        if store.num_tokens < length:
            raise DataError(
                f"The text has {store.num_tokens:,} tokens; one window needs {length:,}.",
                where=store.path,
                hint="Use more text, or a smaller sequence_length.",
            )
        self.store = store
        self.length = length
        self.stride = length - overlap
        self.seed = seed
        self._key = np.uint64(derive(seed, "batch order"))

    @property
    def windows_per_epoch(self) -> int:
        """Number of windows after which every window was drawn once."""
        return self.store.num_tokens // self.stride

    def epoch(self, position: int) -> float:
        """Return how many times the text was seen after `position` windows."""
        return position / self.windows_per_epoch

    def draw(self, position: int, count: int) -> NDArray[np.int64]:
        """Return the windows drawn at `position`, `position + 1`, ...: (count, length).

        Args:
            position: Number of windows drawn before.
            count: Number of windows.

        Raises:
            UserError: `position` is negative or `count` not positive.
            DataError: The store's files were changed meanwhile.
        """
        from nbllm.data.kernels.windows import window_starts

        if position < 0 or count < 1:
            raise UserError(f"Cannot draw {count} windows at position {position}.")
        starts = np.empty(count, np.int64)
        window_starts(position, self.stride, self.store.num_tokens, self._key, starts)
        return self.store.windows(starts, self.length)

    def __repr__(self) -> str:
        return (
            f"WindowSource(windows of {self.length} tokens, one every {self.stride}, seed {self.seed}, "
            f"{self.windows_per_epoch:,} an epoch)"
        )
