"""How the processes of a run are doing, from its newest `ranks` event, which may hold anything."""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any

from nbllm.runs.events import Event, is_number

MOST = 4096  # ranks
SLOWER = 1.25  # times the median: a rank that computes so much longer keeps the others waiting
NOTICEABLE = 0.05  # seconds: what differs by less is chance


@dataclasses.dataclass(frozen=True)
class RankState:
    """One process of a run, at its newest report.

    Attributes:
        rank: Its number.
        memory: Bytes that it holds: of the device on a GPU, else of the process.
        seconds: Of its newest step.
        computing: Seconds of that in which it computed and did not wait for others; NaN: not measured.
        is_slow: Whether the others wait for it.
        weights: Bytes of the weights that it holds: in float32, and in what is computed with where that is another.
        gradients: Bytes of gradients.
        optimizer: Bytes of the optimizer's state.
    """

    rank: int
    memory: float
    seconds: float
    computing: float
    is_slow: bool
    weights: float = math.nan
    gradients: float = math.nan
    optimizer: float = math.nan


def rank_states(event: Event | None) -> list[RankState]:
    """Return the state of each rank; none where there was no report, or it makes no sense.

    Args:
        event: The newest event of kind "ranks": lists `memory`, `seconds` and `computing`, perhaps `weights`,
            `gradients` and `optimizer`, one entry a rank.
    """
    if event is None:
        return []
    columns = [_numbers(event.get(name)) for name in ("memory", "seconds", "computing")]
    if not columns[0] or len({len(column) for column in columns}) > 1:
        return []
    unknown = [math.nan] * len(columns[0])
    held = [_numbers(event.get(name)) for name in ("weights", "gradients", "optimizer")]
    held = [column if len(column) == len(unknown) else unknown for column in held]
    known = [value for value in columns[2] if not math.isnan(value)]
    usual = statistics.median_low(known) if known else math.nan
    limit = max(SLOWER * usual, usual + NOTICEABLE)
    return [
        RankState(rank, memory, seconds, computing, len(known) > 1 and computing > limit, *of_rank)
        for rank, (memory, seconds, computing, *of_rank) in enumerate(zip(*columns, *held, strict=True))
    ]


def _numbers(values: Any) -> list[float]:
    if not isinstance(values, list) or len(values) > MOST:
        return []
    return [float(value) if is_number(value) and value >= 0 else math.nan for value in values]
