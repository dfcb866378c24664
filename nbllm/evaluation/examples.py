"""The examples that an evaluation measures: the data that were given, and what a task reads from them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import DataError, UserError, nearest
from nbllm.core.report.figures import Subject
from nbllm.evaluation.provenance import location_of

if TYPE_CHECKING:
    from nbllm.evaluation.remote import Remote
    from nbllm.evaluation.tasks.base import Task
    from nbllm.lm import LM
    from nbllm.runs.run import Run


@dataclasses.dataclass(frozen=True)
class Source:
    """What a person gave as data for a task.

    Attributes:
        lm: The model to measure, whose tokenizer turns a token store back into text.
        data: A data set, texts, a path, ...; each task documents what it accepts. `None`: the task's own default.
        name: "" where it is the only one and was given none.
        run: The run that made the model.
    """

    lm: LM | Remote
    data: Any = None
    name: str = ""
    run: Run | None = None


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of one data set.

    Attributes:
        name: "" where it is the only one and was given none.
        rows: Mappings of what JSON can hold.
        source: A description of where they come from.
        fingerprint: SHA-256 of the rows, in hexadecimal.
        location: By what they can be loaded again, as `TaskRecord.location` says.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    source: str
    fingerprint: str
    location: str | None = None

    def subject(self, task: Task) -> Subject:
        """Return what a task measures on these examples."""
        settings = tuple(task.to_dict().items())
        return Subject(task=task.name, data=self.name, fingerprint=self.fingerprint, settings=settings)


def load_examples(task: Task, source: Source, limit: int | None) -> Examples:
    """Return the examples that a task reads from the data that were given.

    Args:
        task: Reads the data.
        source: What was given.
        limit: Only so many examples: the first ones, or where the task has clusters, evenly from each of them.

    Raises:
        DataError: There is nothing to measure, or the task cannot read the data.
    """
    rows, words = task.examples(source)
    rows = _limited(rows, limit, task.cluster)
    if not rows:
        raise DataError(
            f"There is no {task.noun} to measure.", hint="Give what the model has not seen: data=..."
        )
    return Examples(source.name, rows, words, fingerprint(rows), location_of(source.data))


def _limited(rows: Sequence[Mapping[str, Any]], limit: int | None, cluster: str) -> list[Mapping[str, Any]]:
    """Return the first `limit` rows in turns over the clusters, in their own order."""
    if limit is None or not (cluster and all(cluster in row for row in rows)):
        return list(rows[:limit])
    rank: Counter[Any] = Counter()
    places = []
    for place, row in enumerate(rows):
        rank[row[cluster]] += 1
        places.append((rank[row[cluster]], place))
    return [rows[place] for place in sorted(place for _, place in sorted(places)[:limit])]


def fingerprint(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the SHA-256 of the examples in their order, in hexadecimal."""
    digest = hashlib.sha256()
    for row in rows:
        data = json.dumps(row, sort_keys=True).encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def sources(
    lm: LM | Remote, tasks: Sequence[Task], data: Any, run: Run | None
) -> Iterator[tuple[Task, Source]]:
    """Yield each task with each data set that it measures, all tasks of one data set before the next.

    A dictionary gives several data sets. Its keys are names of tasks, `{"mmlu": ..., "gsm8k": ...}` (a task that is
    left out uses its default), or else names of one's own, whose data every task measures.

    Raises:
        DataError: A key is not a name, or names of tasks and other names are mixed.
    """
    by_name = {task.name: task for task in tasks}
    if _is_named(data) and any(name in by_name for name in data):
        for name in data:
            if name not in by_name:
                raise DataError(
                    f"data names the task {next(n for n in data if n in by_name)!r}, and {name!r}, which is none "
                    "of the tasks to measure.",
                    hint=nearest(str(name), by_name),
                )
        for task in tasks:
            for name, value in _named(data.get(task.name)):
                yield task, Source(lm, value, name, run)
        return
    for name, value in _named(data):
        for task in tasks:
            yield task, Source(lm, value, name, run)


def _is_named(data: Any) -> bool:
    return isinstance(data, Mapping) and not hasattr(data, "column_names")  # a DatasetDict has columns


def _named(data: Any) -> Iterator[tuple[str, Any]]:
    if not _is_named(data):
        yield "", data
        return
    if not data:
        raise DataError("There is no text to measure.", hint='Name one: data={"held out": dataset}.')
    for name, value in data.items():
        if not isinstance(name, str) or not name.strip() or value is None:
            raise DataError(f"{name!r} names no text.", hint='Name each: data={"held out": dataset}.')
        yield name, value


def check_names(tasks: Sequence[Task]) -> None:
    """Raise `UserError` where two tasks have one name: their figures could not be told apart."""
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise UserError(f"A task is named twice: {', '.join(names)}.", where="tasks")
