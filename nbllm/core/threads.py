"""Work in several threads at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


def map_in_threads(work: Callable[..., Result], *items: Iterable[Any], threads: int) -> list[Result]:
    """Return what a function returns for each of some items, in their order.

    A process that is ending starts no threads any more, but may still have a run's last checkpoint to write: the items
    are then taken one after another.

    Args:
        work: The function.
        items: Its arguments, as `map` takes them.
        threads: How many work at once.

    Raises:
        Exception: What `work` raises, of the first item for which it does.
    """
    calls = list(zip(*items, strict=True))
    try:
        with ThreadPoolExecutor(threads) as pool:
            futures = [pool.submit(work, *call) for call in calls]
    except RuntimeError:
        return [work(*call) for call in calls]
    return [future.result() for future in futures]
