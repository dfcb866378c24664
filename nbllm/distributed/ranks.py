"""The processes that train one run together, as the loop sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

from nbllm.core.errors import RunError

T = TypeVar("T")


class RankZeroError(RunError):
    """Rank 0 has failed, which is why this rank cannot go on; the reason is the error that rank 0 raised."""


class Ranks(Protocol):
    """What the loop needs of the processes that run it side by side, each with its own batches.

    All of them call the same methods in the same order.
    """

    @property
    def rank(self) -> int:
        """Which of them this is. Rank 0 decides and records."""

    @property
    def size(self) -> int:
        """How many there are."""

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank.

        Args:
            value: Of rank 0, what JSON can hold; of the others it is not looked at. They wait for it as long as it
                takes: a paused run decides nothing.
        """

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks; all get the same bits."""


class OneRank:
    """A single process."""

    rank = 0
    size = 1

    def broadcast(self, value: Any) -> Any:
        """Return the value."""
        return value

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """The sum over one rank is what there is."""


def from_rank_zero(ranks: Ranks, make: Callable[[], T]) -> T:
    """Return on every rank what `make`, which rank 0 alone calls, returns there: what JSON can hold.

    Raises:
        RankZeroError: On the other ranks, where `make` fails on rank 0.
        Exception: On rank 0, what `make` raises.
    """
    if ranks.rank > 0:
        answer = ranks.broadcast(None)
        if "error" in answer:
            raise RankZeroError(f"Rank 0 has failed: {answer['error']}")
        made: T = answer["value"]
        return made
    try:
        made = make()
    except BaseException as error:
        ranks.broadcast({"error": f"{type(error).__name__}: {error}"})
        raise
    ranks.broadcast({"value": made})
    return made
