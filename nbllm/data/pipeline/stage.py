"""A stage: what is done to documents between two steps that need the whole corpus."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nbllm.core.io import read_json, write_json
from nbllm.data.arrow_text import Texts
from nbllm.data.pipeline.applying import ID, TEXT, TOKENS, Outcome, run_steps
from nbllm.data.pipeline.parts import DATA, MOST_RECORD_BYTES, Part, PartWriter, disk_errors
from nbllm.data.pipeline.placed import Placed
from nbllm.data.pipeline.shards import BATCH_ROWS, Advance, Unit, cut, text_bytes
from nbllm.data.pipeline.step import CorpusStep
from nbllm.data.pipeline.tokens import TokenCounter
from nbllm.data.sources.omissions import Omissions

Item = TypeVar("Item")
Result = TypeVar("Result")


class InOrder(Protocol):
    """Maps a function over items and yields the results in their order."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        """Yield `function(item)` for each item."""
        ...


@contextlib.contextmanager
def threads(count: int) -> Iterator[InOrder]:
    """A context with a map whose function runs in `count` threads, with few items in memory at once."""
    pool = ThreadPoolExecutor(count, "prepare")

    def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        yield in_order
    finally:
        pool.shutdown(cancel_futures=True)


@dataclasses.dataclass(frozen=True)
class Stage:
    """What is done to each batch.

    Attributes:
        index: Its place among the stages.
        folder: Where its parts are written.
        steps: Filters and editors; the first may be a `CorpusStep` that is solved.
        scan: The `CorpusStep` behind them, which scans what they leave; None in the last stage.
        decisions: The Arrow file with what the first step decided.
        counter: Counts tokens.
        part_bytes: Text that enters a part, about.
        skip: Whether what cannot be read is left out.
    """

    index: int
    folder: str
    steps: tuple[Placed, ...]
    scan: CorpusStep | None
    decisions: str | None
    counter: TokenCounter
    part_bytes: int
    skip: bool

    def work(self, batch: pa.Table) -> tuple[Outcome, pa.Table | None]:
        """Take one batch through the stage; several threads do so at once."""
        if self.index == 0:
            batch = batch.append_column(TOKENS, pa.array(self.counter.count(Texts.of(batch[TEXT]))))
        decided = None
        if self.decisions is not None:
            decided = _load(self.decisions).of(batch[ID].to_numpy())
        outcome = run_steps(batch, self.steps, decided, self.counter)
        if self.scan is None:
            return outcome._replace(documents=outcome.documents.drop_columns(TOKENS)), None
        documents = outcome.documents
        return outcome, self.scan.scan(Texts.of(documents[TEXT]), documents[ID].to_numpy())

    def run_unit(self, unit: Unit, in_order: InOrder, advance: Advance) -> UnitResult:
        """Write the parts of a unit of the input, except those that were finished earlier.

        Args:
            unit: The unit.
            in_order: The map.
            advance: Told how many bytes of the unit were read.

        Raises:
            DataError: A file cannot be read and is not to be left out, or the disk is full.
        """
        folder = Path(self.folder)
        record = folder / f"u{unit.index:05d}.json"
        with contextlib.suppress(OSError, ValueError, TypeError):
            done = UnitResult(**read_json(record, MOST_RECORD_BYTES))
            if all(Part.find(folder, name) for name in done.parts):
                advance(unit.bytes)
                return done
        omissions = Omissions("skip" if self.skip else "raise")
        parts = _Numbered(folder, unit, self.part_bytes)
        names = self._write(parts.unfinished(omissions, advance), in_order)
        found = sorted({*parts.finished, *names})
        result = UnitResult(found, dict(omissions.counts), dict(omissions.examples), omissions.notes)
        with disk_errors(folder):
            write_json(record, dataclasses.asdict(result))
        return result

    def run_part(self, part: str, in_order: InOrder, advance: Advance, *, before: str) -> None:
        """Write one part, of the part of that name of the stage before, unless it was finished earlier.

        Args:
            part: Its name.
            in_order: The map.
            advance: Told how many bytes of text were read.
            before: The folder of the stage before.
        """
        if (found := Part.find(Path(self.folder), part)) is not None:
            advance(found.entered.bytes)
            return

        def told(batch: pa.Table) -> tuple[str, pa.Table]:
            advance(batch[TEXT].nbytes)
            return part, batch

        with pq.ParquetFile(Path(before) / f"{part}.{DATA}") as file:
            tables = (pa.Table.from_batches([batch]) for batch in file.iter_batches(BATCH_ROWS))
            batches = (piece for table in tables for piece in cut(table))
            self._write(map(told, _or_empty(batches, file.schema_arrow)), in_order)

    def _write(self, batches: Iterator[tuple[str, pa.Table]], in_order: InOrder) -> list[str]:
        """Write batches into the parts that they belong to; return the names of the parts."""
        folder = Path(self.folder)
        writer: PartWriter | None = None
        names: list[str] = []

        def work(item: tuple[str, pa.Table]) -> tuple[str, tuple[Outcome, pa.Table | None]]:
            return item[0], self.work(item[1])

        try:
            for name, (outcome, scan) in in_order(work, batches):
                with disk_errors(folder):
                    if writer is None or name != names[-1]:
                        if writer is not None:
                            writer.commit()
                        writer = PartWriter(folder, name)
                        names.append(name)
                    writer.add(outcome, scan)
            with disk_errors(folder):
                if writer is not None:
                    writer.commit()
        except BaseException:
            if writer is not None:
                writer.discard()
            raise
        return names


@dataclasses.dataclass(frozen=True)
class UnitResult:
    """What became of a unit of the input.

    Attributes:
        parts: The names of its parts.
        omitted: How many things of each kind could not be read and were left out.
        examples: Where some of them are.
        notes: What else is to be said of the input.
    """

    parts: list[str]
    omitted: dict[str, int]
    examples: dict[str, list[str]]
    notes: list[str]


class _Numbered:
    """The batches of a unit, each with the name of the part that it belongs to."""

    def __init__(self, folder: Path, unit: Unit, part_bytes: int) -> None:
        self._folder, self._unit, self._part_bytes = folder, unit, part_bytes
        self.finished: list[str] = []

    def unfinished(self, omissions: Omissions, advance: Advance) -> Iterator[tuple[str, pa.Table]]:
        """Yield the batches of parts that are not finished."""
        number = size = 0
        name, done = "", False
        for batch in self._unit.read(omissions, advance):
            if size == 0:
                name = f"u{self._unit.index:05d}-p{number:04d}"
                done = Part.find(self._folder, name) is not None
                if done:
                    self.finished.append(name)
            if not done:
                yield name, batch
            size += text_bytes(batch)
            if size >= self._part_bytes:
                number, size = number + 1, 0


def _or_empty(batches: Iterator[pa.Table], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the batches, or where there are none, an empty one: a part without documents is a part."""
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        yield schema.empty_table()


class Decisions:
    """What a `CorpusStep` decided, in a mapped file, looked up by the ids of a batch."""

    def __init__(self, path: str) -> None:
        with pa.memory_map(path) as source:
            self._table = pa.ipc.open_file(source).read_all()
        self._ids = self._table["id"].to_numpy()

    @staticmethod
    def write(table: pa.Table, path: Path) -> None:
        """Write decisions, ordered by id."""
        order = np.argsort(table["id"].to_numpy(), kind="stable")
        table = table.take(pa.array(order)).combine_chunks()
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)

    def of(self, ids: Any) -> pa.Table:
        """Return the rows whose id is in `ids`, ordered by id."""
        ids = np.sort(ids)
        begin = np.searchsorted(self._ids, ids, "left")
        count = np.searchsorted(self._ids, ids, "right") - begin
        rows = np.repeat(begin - np.cumsum(count) + count, count) + np.arange(count.sum())
        return self._table.take(pa.array(rows)).combine_chunks()


@functools.lru_cache(maxsize=4)
def _load(path: str) -> Decisions:
    return Decisions(path)
