"""What each rank tells of itself, so that a slow one or one without memory is seen."""

from __future__ import annotations

import math
import time

import torch

from nbllm.distributed.ranks import Ranks
from nbllm.training.journal import Journal

PERIOD = 1.0  # seconds between two reports, at least


class RankReport:
    """Gathers memory, step time and computing time of all ranks.

    Computing is the time that the process spends on the CPU, for each of its threads: who waits for others sleeps. On
    a GPU it is not known.

    Args:
        ranks: The ranks.
        journal: Of this rank; the first one's records it.
        device: What is computed on.
    """

    def __init__(self, ranks: Ranks, journal: Journal, device: str) -> None:
        self._ranks, self._journal = ranks, journal
        self._on_gpu = torch.device(device).type == "cuda"
        self._next = 0.0
        self._began = time.process_time()

    def begin_step(self) -> None:
        """Called before each step."""
        self._began = time.process_time()

    def end_step(self, step: int, seconds: float) -> None:
        """Gather, and record it if the last record is some time ago; all ranks call this after the same step.

        Args:
            step: Steps done.
            seconds: What the step took here.
        """
        if self._ranks.size == 1:
            return
        computing = math.nan
        if not self._on_gpu:
            computing = min((time.process_time() - self._began) / torch.get_num_threads(), seconds)
        memory = torch.cuda.max_memory_allocated() if self._on_gpu else self._journal.memory
        told = torch.zeros(self._ranks.size, 3, dtype=torch.float64)
        told[self._ranks.rank] = torch.tensor([memory, seconds, computing])
        self._ranks.sum([told])
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PERIOD
            names = ("memory", "seconds", "computing")
            lists = (column.tolist() for column in told.T)
            self._journal.emit(
                "ranks",
                step=step,
                **{
                    name: [None if math.isnan(v) else v for v in values]
                    for name, values in zip(names, lists, strict=True)
                },
            )
