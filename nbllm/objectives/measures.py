"""What an objective measures beside its loss: means by name, which the loop adds up and reports.

`Objective.loss` calls `measure("reward_accuracy", number_right, number_of_pairs)` for each name that its `metrics`
declare; the loop records within `recorded_measures`, sums over batches and ranks, and reports sum / count in the
events of steps and evaluations, where the panel draws a curve of each and rules can look at it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nbllm.objectives.base import Objective


class Measures:
    """Sums and counts by name.

    Attributes:
        sums: The sum of each name's values, and how many there are.
    """

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, float]] = {}

    def add(self, name: str, total: float, count: float) -> None:
        """Add a sum of `count` values."""
        before, counted = self.sums.get(name, (0.0, 0.0))
        self.sums[name] = (before + total, counted + count)

    def to_tensor(self, names: tuple[str, ...]) -> Tensor:
        """Return (name, 2), float64: the sum and the count of each name, zeros where nothing was measured."""
        return torch.tensor([self.sums.get(name, (0.0, 0.0)) for name in names], dtype=torch.float64).reshape(
            -1, 2
        )

    def means(self) -> dict[str, float]:
        """Return the mean of each name that has a count."""
        return {name: total / count for name, (total, count) in self.sums.items() if count}


def means_of(sums: Tensor, names: tuple[str, ...]) -> dict[str, float]:
    """Return the mean of each name from what `Measures.to_tensor` returned; without those of which there is none."""
    return {name: total / count for name, (total, count) in zip(names, sums.tolist(), strict=True) if count}


_recording: ContextVar[Measures | None] = ContextVar("measures", default=None)


@contextmanager
def recorded_measures() -> Iterator[Measures]:
    """Within the block, in this thread, keep what `measure` is given."""
    measures = Measures()
    token = _recording.set(measures)
    try:
        yield measures
    finally:
        _recording.reset(token)


def current_measures() -> Measures | None:
    """Return what is kept in the block of `recorded_measures` that encloses this call; None: there is none."""
    return _recording.get()


def measure(name: str, total: Tensor | float, count: Tensor | float) -> None:
    """Note a sum of `count` values under a name that the objective's `metrics` declare."""
    measures = _recording.get()
    if measures is not None:
        measures.add(
            name, *(float(x.detach()) if isinstance(x, Tensor) else float(x) for x in (total, count))
        )


def loss_of_source(name: str) -> str:
    """Return the name of the loss on one data set of several."""
    return f"loss/{name}"


def reported_by(objective: Objective[Any]) -> tuple[str, ...]:
    """Return the names under which an objective measures: its metrics, and the loss on each of its sources."""
    return (*objective.metrics, *map(loss_of_source, objective.sources))
