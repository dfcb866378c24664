"""Which sequences run, and what of them is read next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from nbllm.inference.config import SamplingConfig
from nbllm.inference.constraints import is_forced_last
from nbllm.inference.drafters.base import MAX_DRAFT_TOKENS, Drafter, MakeDrafter
from nbllm.inference.runners.base import Batch, Step
from nbllm.inference.sequence import Sequence

if TYPE_CHECKING:
    from nbllm.nn.cache import Cache


class Scheduler:
    """Chooses the steps that continue sequences until each has ended.

    `config.batch_size` sequences run at a time. A sequence that ends leaves the batch and its cache. When the cache is
    full, the contexts of those that go on are laid out and read anew, in the sliding window without their oldest
    tokens. A single sequence has draft tokens read with its newest token.

    Args:
        sequences: They are continued in place, by `append`.
        config: How many together, how long, and what to do when the positions are full.
        max_positions: The longest context.
        make_cache: Returns an empty cache of so many sequences and at least so many tokens.
        make_drafter: Returns a drafter for a sequence; `None`: no drafts.
    """

    def __init__(
        self,
        sequences: list[Sequence],
        config: SamplingConfig,
        *,
        max_positions: int,
        make_cache: Callable[[int, int], Cache],
        make_drafter: MakeDrafter | None = None,
    ) -> None:
        self._config, self._max_positions = config, max_positions
        self._make_cache, self._make_drafter = make_cache, make_drafter
        self._waiting, self._running = deque(sequences), list[Sequence]()
        self._batch: Batch | None = None
        self._drafters: dict[Sequence, Drafter] = {}

    @property
    def has_unfinished(self) -> bool:
        """Whether any sequence goes on."""
        return bool(self._waiting) or any(sequence.stopped_by is None for sequence in self._running)

    def schedule(self) -> Step:
        """Return what is to be read next, for a sequence to go on; some must be unfinished."""
        self._drop_ended()
        if not self._running:
            while self._waiting and len(self._running) < self._config.batch_size:
                self._running.append(self._waiting.popleft())
            self._batch = None
        if self._batch is not None:
            cache, first = self._batch.cache, self._running[0]
            held = int(self._batch.padding[0]) + first.context_length - 1  # all but the newest token
            if cache.length > held:
                cache.crop(held)  # rejected draft tokens
            if cache.length < cache.max_length:
                return self._read_newest(self._batch)
        return self._read_contexts()

    def append(self, sequence: Sequence, token: int) -> None:
        """Add a token to a sequence, and end it where that is the last one."""
        if token in sequence.end_ids:
            is_forced = is_forced_last(sequence, len(sequence.tokens), self._config)
            sequence.stopped_by = "length" if is_forced else "eos"
            sequence.ended_by = None if is_forced else token
            return
        sequence.tokens.append(token)
        if len(sequence.tokens) == self._config.max_new_tokens:
            sequence.stopped_by = "length"
        elif self._config.overflow == "stop" and sequence.context_length > self._max_positions:
            sequence.stopped_by = "context"

    def end_all(self, reason: str) -> None:
        """End every sequence that goes on or has not begun."""
        for sequence in (*self._running, *self._waiting):
            sequence.stopped_by = sequence.stopped_by or reason
        self._waiting.clear()

    def _drop_ended(self) -> None:
        going = [row for row, sequence in enumerate(self._running) if sequence.stopped_by is None]
        if len(going) == len(self._running):
            return
        self._running = [self._running[row] for row in going]
        if self._batch is not None and going:
            rows = torch.tensor(going)
            self._batch.cache.gather(rows)
            self._batch = Batch(self._running, self._batch.padding[rows], self._batch.cache)

    def _read_contexts(self) -> Step:
        """Lay out the running sequences in an empty cache."""
        limit, running = self._max_positions, self._running
        for sequence in running:
            if sequence.context_length > limit:
                sequence.start += sequence.context_length - max(1, limit // 2)
        lengths = torch.tensor([sequence.context_length for sequence in running])
        columns = int(lengths.max())
        remaining = max(self._config.max_new_tokens - len(sequence.tokens) for sequence in running)
        # The last token of a text is never read: nothing is predicted from it.
        cache = self._make_cache(len(running), min(limit, columns + remaining - 1))
        self._batch = Batch(running, columns - lengths, cache)
        tokens = [[0] * (columns - sequence.context_length) + sequence.context for sequence in running]
        return Step(self._batch, tokens)

    def _read_newest(self, batch: Batch) -> Step:
        draft = self._draft(batch)
        return Step(batch, [[*sequence.tokens[-1:], *draft] for sequence in batch.sequences], draft)

    def _draft(self, batch: Batch) -> list[int]:
        if self._make_drafter is None or len(batch.sequences) > 1 or not batch.cache.can_crop:
            return []
        (sequence,) = batch.sequences
        if sequence not in self._drafters:
            self._drafters[sequence] = self._make_drafter()
        most = min(MAX_DRAFT_TOKENS, batch.cache.max_length - batch.cache.length - 1)
        return self._drafters[sequence].propose(sequence.prompt + sequence.tokens, most)[:most]
