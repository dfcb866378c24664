"""Where the work is done: threads of this process, or the workers of a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from nbllm.core.errors import UserError
from nbllm.core.machine import usable_cores
from nbllm.core.progress import progress
from nbllm.data.pipeline.shards import Source
from nbllm.data.pipeline.stage import threads

Result = TypeVar("Result")


class Executor(Protocol):
    """Does pieces of work."""

    def map(
        self, work: Callable[..., Result], items: Sequence[Any], sizes: Sequence[int], label: str
    ) -> list[Result]:
        """Return `work(item, in_order, advance)` for each item, and show how far it is.

        Args:
            work: Takes an item, a map that keeps the order, and what it tells of its progress.
            items: The items.
            sizes: Bytes of each.
            label: What is being done.
        """
        ...

    def call(self, work: Callable[[], Result]) -> Result:
        """Return what one function returns."""
        ...

    def prepare(self, source: Source, folder: Any, unit_bytes: int) -> Source:
        """Return the input as whoever does the work can read it."""
        ...


class Threads:
    """Threads of this process: items one after another, the batches of each at once.

    Args:
        workers: How many.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def map(
        self, work: Callable[..., Result], items: Sequence[Any], sizes: Sequence[int], label: str
    ) -> list[Result]:
        """Do items one after another."""
        with threads(self._workers) as in_order, progress(label, sum(sizes), "B") as bar:
            return [work(item, in_order, bar.update) for item in items]

    def call(self, work: Callable[[], Result]) -> Result:
        """Call the function."""
        return work()

    def prepare(self, source: Source, folder: Any, unit_bytes: int) -> Source:
        """Return the source."""
        return source


class Cluster:
    """The workers of a Dask cluster: several items at once, the batches of each one after another.

    Args:
        client: A `distributed.Client`.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def map(
        self, work: Callable[..., Result], items: Sequence[Any], sizes: Sequence[int], label: str
    ) -> list[Result]:
        """Give the items to the workers, and gather what they return, in order."""
        from distributed import as_completed

        futures = [self._client.submit(work, item, map, _nobody, pure=False) for item in items]
        size = dict(zip(futures, sizes, strict=True))
        try:
            with progress(label, sum(sizes), "B") as bar:
                for future in as_completed(futures):
                    future.result()
                    bar.update(size[future])
            return list(self._client.gather(futures))
        except BaseException:
            self._client.cancel(futures)
            raise

    def call(self, work: Callable[[], Result]) -> Result:
        """Let one worker call the function."""
        result: Result = self._client.submit(work, pure=False).result()
        return result

    def prepare(self, source: Source, folder: Any, unit_bytes: int) -> Source:
        """Write a data set into files: its rows are in this process."""
        return source.stored(folder, unit_bytes)


def _nobody(count: int) -> None:
    """Take no notice of progress: the workers cannot show it."""


def executor_on(on: Any, workers: int | None) -> Executor:
    """Return what does the work.

    Args:
        on: None for this process, or a `distributed.Client`.
        workers: Threads of this process.

    Raises:
        UserError: It is neither, or `workers` is less than 1.
    """
    if on is None:
        if workers is not None and (not isinstance(workers, int) or workers < 1):
            raise UserError(f"workers must be at least 1, not {workers!r}.")
        return Threads(workers or usable_cores())
    if not (hasattr(on, "submit") and hasattr(on, "scheduler_info")):
        raise UserError(
            f"on={type(on).__name__} is no Dask client.",
            hint="from distributed import Client; on=Client(); it needs nbllm[cluster].",
        )
    if workers is not None:
        raise UserError("workers has no meaning with on=...", hint="A cluster has workers of its own.")
    return Cluster(on)
