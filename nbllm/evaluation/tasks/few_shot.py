"""Tasks of published benchmarks: items read from files, and prompts with worked examples."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from nbllm.core.errors import DataError, UserError
from nbllm.core.seeding import derive
from nbllm.evaluation.examples import Source
from nbllm.evaluation.records import Record
from nbllm.evaluation.requests import Prompt
from nbllm.evaluation.splits import Layout, load_split
from nbllm.evaluation.tasks.base import Task

Item = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShotTask(Task):
    """A task whose prompts may begin with worked examples.

    An example that it measures is an item with the items of its worked examples under "shots". A subclass says how a
    record of the published files becomes items, and how an item is asked and answered.

    Args:
        shots: How many worked examples stand before a question.
        shots_seed: `None` takes the first of them, in the order of the file; a number draws them, the same ones for
            all questions that share a pool. An item is never among its own.

    Attributes:
        layout: How the benchmark is published.
        pool: The key of an item whose value its worked examples share, as "subject"; "" for none.
        separator: What stands between worked examples.
    """

    has_long_prompts = True
    layout: ClassVar[Layout]
    pool: ClassVar[str] = ""
    separator: ClassVar[str] = "\n\n"

    shots: int = 0
    shots_seed: int | None = None

    def __post_init__(self) -> None:
        """Check the number of worked examples."""
        if self.shots < 0:
            raise UserError(f"shots must be 0 or more, not {self.shots}.", where=type(self).__name__)

    @abc.abstractmethod
    def items(self, record: Record) -> Iterator[dict[str, Any]]:
        """Yield the items of a record: values that JSON holds.

        Raises:
            DataError: The record is not as published.
        """

    @abc.abstractmethod
    def question(self, item: Item) -> str:
        """Return the prompt of an item without what stands before it."""

    @abc.abstractmethod
    def solution(self, item: Item) -> str:
        """Return what follows the prompt where the item is a worked example, with the space that joins it."""

    def published(self) -> Layout:
        """Return how the benchmark is published, where settings choose a part of it."""
        return self.layout

    def preamble(self, item: Item) -> str:
        """Return what stands before all worked examples."""
        return ""

    def asked(self, example: Item) -> Item:
        """Return an example without its worked examples."""
        return {name: value for name, value in example.items() if name != "shots"}

    def wanted(self, item: Item) -> bool:
        """Say whether an item is measured."""
        return True

    def prompt(self, example: Item) -> Prompt:
        """Return the whole prompt of an example."""
        shots = tuple(
            f"{self.question(shot)}{self.solution(shot)}{self.separator}" for shot in example["shots"]
        )
        return Prompt(self.question(example), shots, self.preamble(example))

    def examples(self, source: Source) -> tuple[Sequence[Mapping[str, Any]], str]:
        """Return the items with their worked examples."""
        layout = self.published()
        records, words = load_split(source.data, layout, layout.splits)
        items = self._items(records)
        pools: Mapping[Any, Sequence[Item]] = {}
        if self.shots and items:
            pools = self._pools(self._items(load_split(source.data, layout, layout.shot_splits)[0]))
        return [{**item, "shots": self._shots(item, pools)} for item in items], words

    def check_records(self, records: Sequence[Record]) -> None:
        """Check what concerns all records together.

        Raises:
            DataError: They do not belong together.
        """

    def _items(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        self.check_records(records)
        return [item for record in records for item in self.items(record) if self.wanted(item)]

    def _pools(self, items: Sequence[dict[str, Any]]) -> dict[Any, list[dict[str, Any]]]:
        """Return the items that worked examples are taken from, by what `pool` says of them."""
        pools: dict[Any, list[dict[str, Any]]] = {}
        for item in items:
            pools.setdefault(item.get(self.pool), []).append(item)
        if self.shots_seed is not None:
            for key, pool in pools.items():
                generator = np.random.default_rng(derive(self.shots_seed, "shots", self.name, str(key)))
                pools[key] = [pool[i] for i in generator.permutation(len(pool))]
        return pools

    def _shots(self, item: Item, pools: Mapping[Any, Sequence[Item]]) -> list[Item]:
        if not self.shots:
            return []
        others = [other for other in pools.get(item.get(self.pool), ())[: self.shots + 1] if other != item]
        if len(others) < self.shots:
            of = f" of the {self.pool} {item[self.pool]!r}" if self.pool else ""
            raise DataError(
                f"{self.name} has {len(others)} worked examples{of}; shots={self.shots} needs more.",
                hint=f"Give a folder that also holds the split {' or '.join(self.layout.shot_splits)}, or fewer shots.",
            )
        return others[: self.shots]
