"""Discrepancy: one model under several conventions of one benchmark, and where the differences come from.

A convention of a benchmark of choices is three things: the prompt, the tokens whose likelihood is compared (letters or
the choices themselves), and the normaliser that turns log-probabilities into a choice. From one convention to another
they are exchanged in this order, one at a time, so that the parts of the difference add up to the whole of it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import UserError
from nbllm.core.quantities import fixed
from nbllm.core.report.figures import Measurement
from nbllm.core.report.report import Report
from nbllm.core.report.sections import Measurements, Table
from nbllm.evaluation.columns import Columns, Row, to_arrays, to_columns
from nbllm.evaluation.config import EvaluationConfig
from nbllm.evaluation.examples import Examples, Source, load_examples
from nbllm.evaluation.measuring import answer_examples
from nbllm.evaluation.metrics.accuracy import Accuracy
from nbllm.evaluation.metrics.base import Metric
from nbllm.evaluation.provenance import model_fingerprint, model_in_signature, signature, task_record
from nbllm.evaluation.requests import Likelihood
from nbllm.evaluation.statistics import Difference, clusters_of, difference, estimate, recorded
from nbllm.evaluation.tasks.base import Task
from nbllm.evaluation.tasks.catalogue import TASKS
from nbllm.evaluation.tasks.multiple_choice import MultipleChoice

if TYPE_CHECKING:
    from nbllm.lm import LM

PARTS = ("prompt", "token", "normalizer")


@dataclasses.dataclass(frozen=True)
class Parts:
    """A convention taken apart: whose prompt, whose tokens, whose normaliser."""

    prompt: MultipleChoice
    token: MultipleChoice
    normalizer: MultipleChoice


def discrepancy(
    lm: LM,
    task: str,
    conventions: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    data: Any = None,
    progress: bool = True,
    **settings: Any,
) -> Report:
    """Measure one model by several conventions of one benchmark, and attribute each difference.

    Args:
        lm: The model.
        task: The name of a task of choices: "mmlu".
        conventions: Two or more, by names of one's own: the settings of the task, as in `{"harness": {"convention":
            "harness"}, "cloze": {"form": "cloze"}}`. Each is compared with the first.
        data: As for `nb.evaluate`.
        progress: Whether a line says how far it is.
        **settings: Fields of `EvaluationConfig`, and of the task for all conventions: `shots=5`.

    Returns:
        The accuracy by each convention, and for each but the first by how much prompt, token and normaliser change it,
        with the interval of each paired difference.

    Raises:
        UserError: There are fewer than two conventions, a setting is unknown, the task is not one of choices, or the
            conventions do not measure the same questions.
    """
    config, tasks = _configured(task, conventions or {}, settings)
    base = next(iter(tasks.values()))
    examples = {name: load_examples(each, Source(lm, data), config.limit) for name, each in tasks.items()}
    first = next(iter(examples.values()))
    for name, each in examples.items():
        if each.fingerprint != first.fingerprint:
            raise UserError(
                f"The convention {name!r} does not measure the questions of {next(iter(tasks))!r}.",
                hint="Give all the same subjects, shots and data.",
            )
    measure = _Measuring(lm, first, config, progress)
    model = model_in_signature(lm, model_fingerprint(lm))
    figures = [_figure(name, each, measure, model) for name, each in tasks.items()]
    rows = [_row(name, base, each, measure) for name, each in list(tasks.items())[1:]]
    names = list(tasks)
    return Report(f"{base.label} by {len(tasks)} conventions").add(
        Measurements(title="By convention", measurements=tuple(figures)),
        Table(
            title="Where the differences come from",
            note=(
                f"Change of the accuracy from the convention {names[0]!r}. Prompt, compared tokens and normaliser are "
                "exchanged in this order, one at a time, and the three changes add up to the whole. In parentheses the "
                f"{100 * config.confidence:.3g} % interval of the paired difference."
            ),
            header=("convention", *PARTS, "whole"),
            rows=tuple(rows),
        ),
    )


def _configured(
    task: str, conventions: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]
) -> tuple[EvaluationConfig, dict[str, MultipleChoice]]:
    kind = TASKS[task]
    if not issubclass(kind, MultipleChoice):
        raise UserError(
            f"{task} is not a task of choices: it has no prompt, token and normaliser to exchange."
        )
    if len(conventions) < 2:
        raise UserError(
            f"A discrepancy needs two conventions, not {len(conventions)}.",
            hint='{"harness": {"convention": "harness"}, "cloze": {"form": "cloze"}}',
        )
    of_config = {field.name for field in dataclasses.fields(EvaluationConfig)}
    shared = {name: value for name, value in settings.items() if name not in of_config}
    config = {name: value for name, value in settings.items() if name in of_config}
    tasks = {name: kind.from_dict({**shared, **each}) for name, each in conventions.items()}
    return EvaluationConfig.from_dict(config), tasks


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Mixed(Task):
    """A task of choices with the prompt of one convention, the tokens of another and the normaliser of a third."""

    name = "discrepancy"
    label = "discrepancy"
    has_long_prompts = True

    parts: Parts

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return (Accuracy(),)

    def examples(self, source: Source) -> tuple[Sequence[Mapping[str, Any]], str]:
        return self.parts.prompt.examples(source)

    def requests(self, example: Mapping[str, Any]) -> Sequence[Likelihood]:
        prompt = self.parts.prompt.prompt(example)
        return [Likelihood(prompt, each) for each in self.parts.token.continuations(example)]

    def score(self, example: Mapping[str, Any], answers: Sequence[Any]) -> Row:
        """Return whether the question is right, by the normaliser's own first figure."""
        token, normalizer = self.parts.token, self.parts.normalizer
        row = dataclasses.replace(token, normalizer=normalizer.normalizer).score(example, answers)
        cluster = {token.cluster: row[token.cluster]} if token.cluster else {}
        return {"correct": row[normalizer.metrics[0].columns[0]], **cluster}


class _Measuring:
    """Measures the questions by mixed conventions, each mixture once."""

    def __init__(self, lm: LM, examples: Examples, config: EvaluationConfig, progress: bool) -> None:
        self._lm, self._progress = lm, progress
        self.examples, self.config = examples, config
        self._known: dict[Parts, Columns] = {}

    def __call__(self, parts: Parts) -> Columns:
        """Return the columns of the questions that were answered; all, unless interrupted."""
        if parts not in self._known:
            rows = answer_examples(
                self._lm, _Mixed(parts=parts), self.examples.rows, self.config, show_progress=self._progress
            )
            if len(rows) < len(self.examples.rows):
                raise KeyboardInterrupt
            self._known[parts] = to_arrays(to_columns(rows))
        return self._known[parts]

    def change(self, before: Parts, after: Parts) -> Difference:
        """Return by how much the accuracy differs, paired."""
        one, two = self(before), self(after)
        return difference(Accuracy(), one, two, self.config, clusters_of(one, before.prompt.cluster))


def _figure(name: str, task: MultipleChoice, measure: _Measuring, model: str) -> Measurement:
    columns = measure(Parts(task, task, task))
    metric, config = Accuracy(), measure.config
    clusters = clusters_of(columns, task.cluster)
    found = estimate(metric, columns, config, clusters)
    figure = Measurement(
        name=name,
        value=found.value,
        method=found.method,
        note=", ".join(
            f"{key}: {', '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}"
            for key, value in task.to_dict().items()
            if value not in (None, (), "")
        ),
        subject=measure.examples.subject(task),
        signature=task.metrics[0].signature(columns if task.metrics[0].columns == ("correct",) else None),
        **{**recorded(metric, found, config), "metric": task.metrics[0].name},
    )
    record = task_record(task, measure.examples)
    return dataclasses.replace(
        figure, signature=signature(figure, len(measure.examples.rows), config, record, model)
    )


def _row(name: str, base: MultipleChoice, other: MultipleChoice, measure: _Measuring) -> tuple[str, ...]:
    """Return the change of each part and of the whole, as a table shows them."""
    steps = [
        Parts(base, base, base),
        Parts(other, base, base),
        Parts(other, other, base),
        Parts(other, other, other),
    ]
    changes = [measure.change(before, after) for before, after in itertools.pairwise(steps)]
    changes.append(measure.change(steps[0], steps[-1]))
    return (name, *map(_text, changes))


def _text(change: Difference) -> str:
    text = f"{'+' if change.value > 0 else ''}{fixed(change.value, like=0.1)}"
    if change.interval is None or change.value == 0 == change.interval[0] == change.interval[1]:
        return text
    low, high = (fixed(bound, like=0.1) for bound in change.interval)
    return f"{text} ({low} to {high})"
