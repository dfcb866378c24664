"""A task measured on a model: requests answered, answers scored, a row for each example."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from nbllm.core.progress import progress
from nbllm.core.quantities import counted
from nbllm.core.report.figures import Measurement, Subject
from nbllm.core.report.sections import Rows
from nbllm.core.report.values import Value
from nbllm.data.document_bounds import DocumentBounds, document_bounds
from nbllm.evaluation.answer_store import AnswerStore, answers_of
from nbllm.evaluation.answering import answer_prepared
from nbllm.evaluation.columns import Columns, Row, to_arrays, to_columns
from nbllm.evaluation.config import EvaluationConfig
from nbllm.evaluation.examples import Examples
from nbllm.evaluation.preparing import Prepared, prepare
from nbllm.evaluation.remote import Remote
from nbllm.evaluation.requests import Request
from nbllm.evaluation.statistics import BOOTSTRAP, WILSON, clusters_of, estimate, recorded

if TYPE_CHECKING:
    from nbllm.evaluation.metrics.base import Metric
    from nbllm.evaluation.tasks.base import Task
    from nbllm.lm import LM

# Examples are answered in groups of about this many batches: enough to sort requests by length within a group, few
# enough that progress shows and an interruption loses little.
_BATCHES_PER_GROUP = 4
_CHARACTERS_PER_TOKEN = 4  # about
_NOT_TOLD = DocumentBounds(start=None, end=None, start_token="", reason="")
_KEPT_CHARACTERS = 200  # of a text that no comparison needs


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a task found out about a model.

    Attributes:
        task: The task.
        subject: The task with its settings and data.
        columns: The rows, by column.
        num_examples: Examples that there were; more than rows after an interruption.
        measurements: One for each of the task's metrics.
        config: Of the evaluation.
        context: Tokens that the model reads at most; 0 of a remote one, which does not say.
        bounds: The tokens around a document; of a remote model none, for the same reason.
    """

    task: Task
    subject: Subject
    columns: Columns
    num_examples: int
    measurements: tuple[Measurement, ...]
    config: EvaluationConfig
    context: int
    bounds: DocumentBounds

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    @property
    def interrupted(self) -> bool:
        """Whether some examples were not measured."""
        return len(self) < self.num_examples

    @property
    def extent(self) -> str:
        """How much was measured: "200 examples", or "the first 40 of 200 examples"."""
        part = f"the first {len(self):,} of " if self.interrupted else ""
        return part + counted(self.num_examples, self.task.unit)

    @property
    def left_out(self) -> str:
        """What of the prompts was left out for want of room, in a sentence; "" for nothing."""
        if "dropped_shots" not in self.columns:
            return ""
        shots, tokens = (self.columns[name] for name in ("dropped_shots", "dropped_tokens"))
        parts = []
        if shots.any():
            parts.append(f"{int((shots > 0).sum()):,} lost {int(shots.sum()):,} worked examples")
        if tokens.any():
            parts.append(f"{int((tokens > 0).sum()):,} lost {int(tokens.sum()):,} tokens of their beginning")
        if not parts:
            return ""
        return (
            f"Prompts longer than the context of {self.context:,} tokens were shortened: {', '.join(parts)}."
        )

    @property
    def intervals(self) -> str:
        """How the intervals of the figures were found, in sentences."""
        methods = [each.method for each in self.measurements]
        cluster = self.task.cluster if clusters_of(self.columns, self.task.cluster) is not None else ""
        sentences = []
        if WILSON in methods:
            clustered = f", for answers clustered by {cluster}" if cluster else ""
            sentences.append(f"Intervals of proportions are Wilson's{clustered}.")
        pairs = zip(self.task.metrics, methods, strict=True)
        strata = [metric.strata for metric, method in pairs if method == BOOTSTRAP]
        drawn = [] if all(strata) else [f"{cluster}s" if cluster else self.task.unit]
        drawn += [f"{self.task.unit} within each {each}" for each in dict.fromkeys(filter(None, strata))]
        if strata:
            which = "Those of other figures" if sentences else "Intervals"
            of = ", for macro averages of the ".join(drawn)
            sentences.append(
                f"{which} are percentiles of {self.config.resamples:,} bootstrap resamples of the {of}."
            )
        return " ".join(sentences)


def measure(
    lm: LM | Remote, task: Task, examples: Examples, config: EvaluationConfig, *, show_progress: bool = True
) -> tuple[Measured, Rows]:
    """Measure a model.

    Interrupting (KeyboardInterrupt) returns what the first examples gave; before the first group of them is done it
    is raised.

    Args:
        lm: The model and its tokenizer.
        task: Makes requests of the examples, and rows of the answers.
        examples: What to measure.
        config: Confidence, resamples, seed and batch size.
        show_progress: Whether a line says how far it is.

    Returns:
        What was found, and the rows as the report keeps them.
    """
    rows = answer_examples(lm, task, examples.rows, config, show_progress=show_progress)
    subject = examples.subject(task)
    columns = to_columns(rows)
    arrays = to_arrays(columns)
    clusters = clusters_of(arrays, task.cluster)
    measured = Measured(
        task=task,
        subject=subject,
        columns=arrays,
        num_examples=len(examples.rows),
        measurements=tuple(
            _measurement(metric, arrays, subject, config, clusters) for metric in task.metrics
        ),
        config=config,
        context=0 if isinstance(lm, Remote) else lm.config.max_positions,
        bounds=_NOT_TOLD if isinstance(lm, Remote) else document_bounds(lm.tokenizer),
    )
    kept = Rows(
        subject=subject,
        columns=_kept(columns, task),
        num_examples=len(examples.rows),
        unit=task.unit,
        cluster=task.cluster,
        shown=task.shown,
    )
    return measured, kept


def answer_examples(
    lm: LM | Remote,
    task: Task,
    examples: Sequence[Mapping[str, Any]],
    config: EvaluationConfig,
    *,
    show_progress: bool = True,
) -> list[Row]:
    """Return the row of each example; after an interruption, of the first examples."""
    asked = [task.requests(example) for example in examples]
    sizes = list(_new_characters(asked))
    rows: list[Row] = []
    # The lock is held throughout: a run in another thread must not change the weights between two examples.
    with (
        lm.lock,
        progress(task.name, sum(sizes), "B", show=show_progress) as bar,
        _store(lm, config) as store,
    ):
        try:
            for start, stop in _groups(
                sizes, _BATCHES_PER_GROUP * _CHARACTERS_PER_TOKEN * config.batch_tokens
            ):
                group = [request for requests in asked[start:stop] for request in requests]
                prepared = (
                    lm.prepare(group)
                    if isinstance(lm, Remote)
                    else prepare(lm, group, truncation=config.truncation)
                )
                answers = answer_prepared(lm, prepared, batch_tokens=config.batch_tokens, store=store)
                answered = iter(zip(prepared, answers, strict=True))
                for example, requests in zip(examples[start:stop], asked[start:stop], strict=True):
                    parts = [next(answered) for _ in requests]
                    row = task.score(example, [found for _, found in parts])
                    rows.append({**row, **_left_out(task, [each for each, _ in parts])})
                bar.update(sum(sizes[start:stop]))
        except KeyboardInterrupt:
            if not rows:
                raise
    return rows


def _store(lm: LM | Remote, config: EvaluationConfig) -> AbstractContextManager[AnswerStore | None]:
    return answers_of(lm) if config.reuse else nullcontext()


def _left_out(task: Task, prepared: Sequence[Prepared]) -> dict[str, int]:
    """Return the columns that say what of an example's prompts was left out, for want of room."""
    if not task.has_long_prompts:
        return {}
    return {
        "dropped_shots": max(each.dropped_shots for each in prepared),
        "dropped_tokens": max(each.dropped_tokens for each in prepared),
    }


def _new_characters(asked: Sequence[Sequence[Request]]) -> Iterator[int]:
    """Yield for each example how many characters its requests do not share with the beginning of the one before."""
    before = ""
    for requests in asked:
        size = 0
        for request in requests:
            size += request.size - _num_common(before, request.beginning)
            before = request.beginning
        yield size


def _num_common(one: str, two: str) -> int:
    """Return how many characters two texts have in common from their beginning on."""
    low, high = 0, min(len(one), len(two))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == two[low:middle] else (low, middle - 1)
    return low


def _groups(sizes: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield the bounds of consecutive groups, each of about `most`."""
    start = total = 0
    for index, size in enumerate(sizes):
        total += size
        if total >= most or index == len(sizes) - 1:
            yield start, index + 1
            start, total = index + 1, 0


def _measurement(
    metric: Metric, columns: Columns, subject: Subject, config: EvaluationConfig, clusters: Any
) -> Measurement:
    found = estimate(metric, columns, config, clusters)
    return Measurement(
        name=metric.title(subject.data),
        value=found.value,
        unit=metric.unit,
        method=found.method,
        note=metric.note,
        settings=tuple(metric.to_dict().items()),
        subject=subject,
        signature=metric.signature(columns),
        **recorded(metric, found, config),
    )


def _kept(columns: Mapping[str, tuple[Value, ...]], task: Task) -> dict[str, tuple[Value, ...]]:
    """Return the columns for the record: long texts are cut, except those that a comparison recomputes from."""
    whole = {name for metric in task.metrics if metric.of_model for name in metric.columns}
    whole.add(task.cluster)
    return {
        name: values if name in whole else tuple(_cut(value) for value in values)
        for name, values in columns.items()
    }


def _cut(value: Value) -> Value:
    if isinstance(value, str) and len(value) > _KEPT_CHARACTERS:
        return f"{value[: _KEPT_CHARACTERS - 1]}…"
    return value
