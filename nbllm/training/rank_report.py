"""What each rank tells of itself, so that a slow one or one without memory is seen."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch

from nbllm.distributed.ranks import OneRank, Ranks
from nbllm.training.journal import Journal

if TYPE_CHECKING:
    from nbllm.training.optim import Optimizer

PERIOD = 1.0  # seconds between two reports, at least
COUNTED = 100  # steps between counts of what is held: it changes when something is frozen
NAMES = ("memory", "seconds", "computing", "weights", "gradients", "optimizer")


class RankReport:
    """Gathers memory, step time and computing time of all ranks.

    Computing is the time that the process spends on the CPU, for each of its threads: who waits for others sleeps. On
    a GPU it is not known.

    Args:
        ranks: The ranks.
        journal: Of this rank; the first one's records it. None: there is nobody to tell.
        device: What is computed on.
    """

    def __init__(self, ranks: Ranks, journal: Journal | None, device: str) -> None:
        self._ranks, self._journal = ranks, journal
        self._on_gpu = torch.device(device).type == "cuda"
        self._next = 0.0
        self._began = time.process_time()
        self._held = (0, 0, 0)

    def begin_step(self) -> None:
        """Called before each step."""
        self._began = time.process_time()

    def see(self, optimizer: Optimizer, step: int) -> None:
        """Count what is held, now and then; called while there are gradients, after `step` steps."""
        if self._ranks.size > 1 and step % COUNTED < 2:  # before the first step an optimizer has no state
            self._held = optimizer.held_bytes()

    def end_step(self, step: int, seconds: float) -> None:
        """Gather, and record it if the last record is some time ago; all ranks call this after the same step.

        Args:
            step: Steps done.
            seconds: What the step took here.
        """
        if self._ranks.size == 1 or self._journal is None:
            return
        computing = math.nan
        if not self._on_gpu:
            computing = min((time.process_time() - self._began) / torch.get_num_threads(), seconds)
        memory = torch.cuda.max_memory_allocated() if self._on_gpu else self._journal.memory
        told = torch.zeros(self._ranks.size, len(NAMES), dtype=torch.float64)
        told[self._ranks.rank] = torch.tensor([memory, seconds, computing, *self._held])
        self._ranks.sum([told])
        if time.monotonic() >= self._next or step == 2:  # by then all is held that will be
            self._next = time.monotonic() + PERIOD
            columns = zip(NAMES, (column.tolist() for column in told.T), strict=True)
            lists = {name: [None if math.isnan(v) else v for v in values] for name, values in columns}
            self._journal.emit("ranks", step=step, **lists)


NO_REPORT = RankReport(OneRank(), None, "cpu")
