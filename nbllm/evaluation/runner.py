"""`nb.evaluate`: tasks measured on a model, and one report of the results and of how the model was made."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import inspect
import os
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nbllm.core.config import Config
from nbllm.core.errors import UserError, listed, nearest
from nbllm.core.quantities import size
from nbllm.core.report.figures import Measurement
from nbllm.core.report.provenance import Provenance, TaskRecord
from nbllm.core.report.report import Report
from nbllm.core.report.sections import KeyValues, Measurements, Rows, Section
from nbllm.core.signature import InWords, settings_of, takes
from nbllm.evaluation.breakdowns import breakdowns
from nbllm.evaluation.comparison import check_comparable, comparison_section
from nbllm.evaluation.config import EvaluationConfig
from nbllm.evaluation.contamination import contamination, contamination_sections
from nbllm.evaluation.examples import Examples, check_names, load_examples, sources
from nbllm.evaluation.inputs import Inputs
from nbllm.evaluation.measuring import Measured, measure
from nbllm.evaluation.provenance import (
    model_fingerprint,
    model_in_signature,
    provenance,
    signature,
    task_record,
)
from nbllm.evaluation.remote import Remote
from nbllm.evaluation.reproduction import reproduction_section
from nbllm.evaluation.run_sections import run_details, run_sections, training_metrics
from nbllm.evaluation.several import compare_reports
from nbllm.evaluation.tasks.base import Task
from nbllm.evaluation.tasks.catalogue import TASKS

if TYPE_CHECKING:
    from pathlib import Path

    from nbllm.lm import LM
    from nbllm.runs.run import Run

_IN_SUMMARY = 3  # figures of a task


def _settings() -> list[inspect.Parameter]:
    """Return what `evaluate` takes beside its own parameters; one that several tasks declare stands there once."""
    declared = [
        *settings_of(EvaluationConfig),
        *(each for task in TASKS for each in settings_of(TASKS[task])),
    ]
    by_name: dict[str, inspect.Parameter] = {}
    for each in declared:
        same = by_name.setdefault(each.name, each)
        if same.default != each.default:
            by_name[each.name] = each.replace(default=InWords("the task's"))
    return list(by_name.values())


@takes(_settings(), EvaluationConfig)
def evaluate(
    lm: LM | Remote | Run | str | Path | Mapping[str, LM | Remote | Run | str | Path],
    tasks: str | Task | Sequence[str | Task] = ("perplexity",),
    *,
    data: Any = None,
    run: Run | str | Path | None = None,
    against: Report | None = None,
    training: Any = None,
    title: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> Report:
    """Measure a model, and return a report that also says how the model was made.

    Args:
        lm: The model; or a run, its name in `runs/` or its folder: the weights of its newest checkpoint are measured.
            Or a model behind an OpenAI-compatible endpoint, `nb.evaluation.Remote(url, model=...)`.
            Several by name, `{"small": a, "large": b}`, are measured on the same examples and compared in one report.
        tasks: Names of tasks ("perplexity", "mmlu", "gsm8k", ...; `nb.evaluation.list_tasks()`), or tasks of one's own
            (`nb.evaluation.task`).
        data: What the tasks measure. For "perplexity" held-out documents: a data set with a `text` column, a
            `DatasetDict` (its held-out split), a token store, or a list of texts. For a benchmark its published files
            (a file or their folder), the name of a data set of the hub, a `Dataset`, a `DatasetDict` or rows. Several
            by name, each measured on its own: `{"mine": held_out, "other": other}`; by the names of tasks, each for
            that task alone. `None`: the task's own, a small set that comes with nbllm; for "perplexity" what `run` held
            out, or else the held-out tenth of pydocs. The report says which.
        run: The run that made the model, its name or its folder: its curve, actions, samples and settings become part
            of the report.
        against: An earlier report of the same tasks on the same data, as of the model before it was trained further:
            what changed becomes part of the report, with the interval of the paired difference over examples.
        training: What the model was trained on: a run, or a text as for "perplexity". The report then says which
            examples stand there in part (13 words or 50 characters in a row), and gives every figure without them.
        title: The report's title.
        progress: Whether a line says how far it is.
        **settings: Fields of `EvaluationConfig` (limit, confidence, resamples, seed, batch_tokens, truncation, reuse)
            and of the tasks (of "perplexity": stride; of benchmarks: shots, shots_seed; of "mmlu": subjects,
            convention, form), for all that have them or by the name of a task: `shots={"mmlu": 5, "gsm8k": 8}`.

    Returns:
        The report: shown in a cell, `report.save("report.html")` (or .pdf, .md, .json) and `report.metric(name)`.
        Interrupting reports what was measured so far, and says so.

    Raises:
        UserError: A task or setting is unknown (the nearest is named) or out of range; `against` measured something
            else; or the model does not have the weights of `run`.
        RunError: There is no such run; the nearest name is given.
        DataError: There is nothing to measure.
    """
    config, chosen = _configure(tasks, settings)
    if isinstance(lm, Mapping):
        _refuse_with_several(run=run, against=against)
        reports = {
            name: evaluate(each, chosen, data=data, training=training, progress=progress, **config.to_dict())
            for name, each in lm.items()
        }
        return compare_reports(reports, config, title=title)
    lm, run, step = _subject(lm, run)
    jobs = [
        (task, load_examples(task, source, config.limit)) for task, source in sources(lm, chosen, data, run)
    ]
    if isinstance(lm, Remote):
        lm.check(jobs)
    if against is not None:
        check_comparable(against, [examples.subject(task) for task, examples in jobs])
    results, made = _measure(lm, jobs, config, show_progress=progress)
    found = [[*measured.task.sections(measured), *breakdowns(measured)] for measured, _ in results]
    if training is not None:
        overlaps = contamination(lm, training, jobs)
        for part, (measured, _), overlap in zip(found, results, overlaps, strict=True):
            part += contamination_sections(measured, overlap)
    for part, (_, rows) in zip(found, results, strict=True):
        part.append(rows)
    report = Report(
        title=title or _title(lm, run, step),
        provenance=(made,),
        inputs=Inputs({"": weakref.ref(lm)}, chosen, data),
    )
    report.add(_summary(lm, run, [measured for measured, _ in results]))
    if against is not None:
        report.add(comparison_section(against, Report("", [s for part in found for s in part]), config))
    report.add(_remote_model(lm) if isinstance(lm, Remote) else _model(lm, run, step))
    if run is not None and not isinstance(lm, Remote):
        report.add(*run_sections(run, lm))
    for part in found:
        report.add(*part)
    if run is not None:
        report.add(*run_details(run))
    return report.add(reproduction_section(jobs, config, run))


def _refuse_with_several(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise UserError(
                f"{name} belongs to one model, and several are to be measured.",
                hint='Give models or runs by name: nb.evaluate({"small": run, "large": other}).',
            )


def _subject(
    lm: LM | Remote | Run | str | Path, run: Run | str | Path | None
) -> tuple[LM | Remote, Run | None, int | None]:
    """Return the model to measure, the run that made it, and the step of that run whose weights it has, if known."""
    from nbllm.evaluation.run_weights import weights_step
    from nbllm.lm import LM
    from nbllm.opening import load
    from nbllm.runs.locating import find, locate
    from nbllm.runs.run import Run

    if isinstance(lm, Remote):
        if run is not None:
            raise UserError("run belongs to a model in this process, and a remote one is to be measured.")
        return lm, None, None
    if not isinstance(lm, (LM, Run, str, os.PathLike)):
        raise UserError(
            f"{type(lm).__name__} is neither a model nor a run.", hint="nb.evaluate(lm), or nb.evaluate(run)"
        )
    if run is None and (isinstance(lm, Run) or (not isinstance(lm, LM) and find(lm) is not None)):
        run = lm
    if run is not None and not isinstance(run, Run):
        run = Run(locate(run))
    if isinstance(lm, LM):
        return lm, run, None if run is None else weights_step(lm, run)
    lm, step = load(lm), None
    if run is not None:
        with contextlib.suppress(UserError):  # a run that goes on may have deleted the checkpoint meanwhile
            step = weights_step(lm, run)
    return lm, run, step


def _configure(
    tasks: str | Task | Sequence[str | Task], settings: Mapping[str, Any]
) -> tuple[EvaluationConfig, list[Task]]:
    """Return the configuration of the evaluation, and the tasks with theirs: each setting goes where it is declared.

    Raises:
        UserError: A task is unknown or named twice, or a setting is declared nowhere or out of range.
    """
    given = [tasks] if isinstance(tasks, (str, Task)) else list(tasks)
    if not given:
        raise UserError("There is no task to measure.", hint=f"Tasks: {listed(TASKS, quote=False, most=40)}.")
    kinds = [TASKS[task] if isinstance(task, str) else type(task) for task in given]
    configured: list[type[Config]] = [EvaluationConfig, *kinds]
    declared = {kind: {field.name for field in dataclasses.fields(kind)} for kind in configured}
    known = set().union(*declared.values())
    for name in settings:
        if name not in known:
            names = ", ".join(kind.name for kind in kinds)
            raise UserError(f"Evaluating {names} has no setting {name!r}.", hint=nearest(name, known))

    measured = {kind.name for kind in kinds}

    def of(kind: type[Any]) -> dict[str, Any]:
        found = {name: value for name, value in settings.items() if name in declared[kind]}
        if kind is EvaluationConfig:
            return found
        return {
            name: value[kind.name] if isinstance(value, Mapping) else value
            for name, value in found.items()
            if not isinstance(value, Mapping) or kind.name in value
        }

    for name, value in settings.items():
        if isinstance(value, Mapping):
            for key in value:
                if key not in measured:
                    raise UserError(
                        f"{name} names {key!r}, which is not measured.", hint=nearest(str(key), measured)
                    )

    chosen = [
        kind.from_dict(of(kind)) if isinstance(task, str) else task.replace(**of(kind))
        for task, kind in zip(given, kinds, strict=True)
    ]
    check_names(chosen)
    return EvaluationConfig.from_dict(of(EvaluationConfig)), chosen


def _measure(
    lm: LM | Remote, jobs: Sequence[tuple[Task, Examples]], config: EvaluationConfig, *, show_progress: bool
) -> tuple[list[tuple[Measured, Rows]], Provenance]:
    """Return what each task found, its figures signed, with its rows; and how all of it was measured."""
    started, begun = datetime.datetime.now(datetime.UTC), time.monotonic()
    records = [task_record(task, examples) for task, examples in jobs]
    fingerprint = model_fingerprint(lm)
    named = model_in_signature(lm, fingerprint)
    results = []
    for (task, examples), record in zip(jobs, records, strict=True):
        measured, rows = measure(lm, task, examples, config, show_progress=show_progress)
        results.append((_signed(measured, record, named), rows))
    seconds = time.monotonic() - begun
    return results, provenance(
        lm, records, config, fingerprint, started.isoformat(timespec="seconds"), seconds
    )


def _signed(measured: Measured, record: TaskRecord, model: str) -> Measured:
    """Return what was measured, each figure with its signature."""
    return dataclasses.replace(
        measured,
        measurements=tuple(
            dataclasses.replace(
                figure, signature=signature(figure, len(measured), measured.config, record, model)
            )
            for figure in measured.measurements
        ),
    )


def _title(lm: LM | Remote, run: Run | None, step: int | None) -> str:
    if isinstance(lm, Remote):
        return f"The language model {lm.name}"
    what = f"A {_family(lm)} language model of {_count(lm)} parameters"
    if run is None:
        return what
    at_step = "" if step is None or step == run.step else f" at step {step:,}"
    return f"{what}: the run {run.name}{at_step}"


def _summary(lm: LM | Remote, run: Run | None, results: Sequence[Measured]) -> Section:
    several = len({measured.task.name for measured in results}) > 1  # then two may have an accuracy
    figures = [
        dataclasses.replace(
            figure, note="", name=f"{measured.task.name}: {figure.name}" if several else figure.name
        )
        for measured in results
        for figure in measured.measurements[:_IN_SUMMARY]
    ]
    figures += [] if run is None else training_metrics(run)
    if not isinstance(lm, Remote):
        figures.append(Measurement(name="parameters", value=lm.num_parameters))
    return Measurements(
        title="Summary",
        note=" ".join(map(_sentence, results)),
        measurements=tuple(figures),
        prominent=True,
    )


def _sentence(measured: Measured) -> str:
    text = measured.task.sentence(measured)
    if measured.interrupted:
        done, of = len(measured), measured.num_examples
        text += f". The measurement was interrupted after {done} of {of} {measured.task.unit}"
    return f"{text}."


def _remote_model(lm: Remote) -> KeyValues:
    return KeyValues(
        title="The model",
        note="Its weights are not here: the endpoint may have something else behind this name at another time.",
        entries=(("name", lm.model), ("endpoint", lm.url), ("requests", lm.api_in_words)),
    )


def _model(lm: LM, run: Run | None, step: int | None) -> KeyValues:
    from nbllm.nn.activations import ACTIVATIONS

    shape = lm.config
    memory = sum(parameter.nbytes for parameter in lm.model.parameters())
    activation = ACTIVATIONS[shape.activation].label
    heads = f"{shape.num_heads} of width {shape.head_dim}"
    if shape.num_kv_heads != shape.num_heads:
        heads += f", {shape.num_kv_heads} for keys and values"
    weights = () if run is None or step is None else (("weights", f"of the run {run.name} at step {step:,}"),)
    return KeyValues(
        title="The model",
        entries=(
            *weights,
            ("family", _family(lm)),
            ("layers", shape.num_layers),
            ("width", shape.hidden_size),
            ("attention heads", heads),
            ("feed-forward", f"{shape.intermediate_size:,} wide, {activation}{', gated' * shape.gated}"),
            ("positions", f"{shape.max_positions}, {shape.positions}"),
            ("vocabulary", f"{shape.vocab_size:,} tokens"),
            (
                "parameters",
                f"{lm.num_parameters:,}, {size(memory)} as {str(lm.model.dtype).removeprefix('torch.')}",
            ),
        ),
    )


def _family(lm: LM) -> str:
    from nbllm.models.families import FAMILIES

    return FAMILIES[lm.config.family].label


def _count(lm: LM) -> str:
    count = lm.num_parameters
    for scale, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if count >= scale:
            return f"{count / scale:.3g} {word}"
    return str(count)
