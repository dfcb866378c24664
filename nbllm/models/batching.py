"""Which sequences are read together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def batches(items: Iterable[Item], length: Callable[[Item], int], max_tokens: int) -> Iterator[list[Item]]:
    """Yield items in their order, so many at a time that padded they have at most `max_tokens` tokens; at least one.

    Args:
        items: Sorted by length, so that little is padded.
        length: Returns how many tokens an item has.
        max_tokens: Of a batch.
    """
    batch: list[Item] = []
    longest = 0
    for item in items:
        longest = max(longest, length(item))
        if batch and (len(batch) + 1) * longest > max_tokens:
            yield batch
            batch, longest = [], length(item)
        batch.append(item)
    if batch:
        yield batch
