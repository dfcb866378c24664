"""Steps of several libraries, taken in turn in one process, so that all of them meet the same machine."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Turns(NamedTuple):
    """What each library did in the rounds that count, and how long that took in all."""

    tokens: collections.Counter[str]
    seconds: collections.Counter[str]

    def speed(self, name: str) -> float:
        """Return the tokens a second of one library."""
        return self.tokens[name] / self.seconds[name]


def take_turns(steps: Mapping[str, Callable[[], int]], rounds: int) -> Turns:
    """Take `rounds` steps of each after one that warms up, printing each.

    Args:
        steps: By the name of its library, what takes a step and returns how many tokens it was of.
        rounds: How many count.
    """
    turns = Turns(collections.Counter(), collections.Counter())
    for number in range(rounds + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            count = step()
            took = time.perf_counter() - began
            print(f"round {number}: {name:12} {count:5} tokens in {took:6.2f} s", flush=True)
            if number:
                turns.tokens[name] += count
                turns.seconds[name] += took
    return turns
