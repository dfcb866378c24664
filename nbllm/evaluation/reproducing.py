"""`nb.reproduce`: an evaluation run again as its report records it, and compared figure by figure."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import UserError
from nbllm.core.report.figures import Measurement
from nbllm.core.report.provenance import Provenance, TaskRecord
from nbllm.core.report.report import Report
from nbllm.core.report.sections import Section, Table
from nbllm.evaluation.comparison import figure_key
from nbllm.evaluation.inputs import Inputs
from nbllm.evaluation.provenance import REMOTE
from nbllm.evaluation.runner import evaluate
from nbllm.evaluation.several import with_task
from nbllm.evaluation.tasks.catalogue import TASKS

if TYPE_CHECKING:
    from nbllm.evaluation.remote import Remote
    from nbllm.evaluation.tasks.base import Task
    from nbllm.lm import LM

TOLERANCE = 1e-6  # relative; sums in another order, as on another machine, differ by less
IDENTICAL, AGREES, DIFFERS, MISSING = "identical", "agrees", "differs", "not measured"


@dataclasses.dataclass(frozen=True)
class Reproduced:
    """One figure, as it was recorded and as it is now.

    Attributes:
        name: As it is shown.
        recorded: Its value in the report.
        now: Its value when run again; `None` where it was not.
        verdict: "identical", "agrees" (to `TOLERANCE`), "differs" or "not measured".
    """

    name: str
    recorded: float | int | None
    now: float | int | None
    verdict: str


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """Whether an evaluation that was run again agrees with its report.

    Attributes:
        report: The new report.
        figures: Every figure, as it was and as it is.
        changed: What is not as it was then: (what, then, now).
    """

    report: Report
    figures: tuple[Reproduced, ...]
    changed: tuple[tuple[str, str, str], ...]

    @property
    def agrees(self) -> bool:
        """Whether every figure is the same, to `TOLERANCE`."""
        return all(each.verdict in (IDENTICAL, AGREES) for each in self.figures)

    def sections(self) -> list[Section]:
        """Return it as parts of a report."""
        out: list[Section] = [
            Table(
                title="Reproduced",
                note=str(self),
                header=("figure", "recorded", "now", "verdict"),
                rows=tuple((each.name, each.recorded, each.now, each.verdict) for each in self.figures),
            )
        ]
        if self.changed:
            header = ("what is not as it was", "then", "now")
            out.append(Table(header=header, rows=self.changed))
        return out

    def __str__(self) -> str:
        good = sum(each.verdict in (IDENTICAL, AGREES) for each in self.figures)
        same = sum(each.verdict == IDENTICAL for each in self.figures)
        what = "The report is reproduced" if self.agrees else "The report is NOT reproduced"
        return f"{what}: {good} of {len(self.figures)} figures agree, {same} of them to the last bit."

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return Report("Reproduction").add(self)._repr_html_()


def reproduce(
    report: Report,
    lm: LM | Remote | Mapping[str, LM | Remote] | None = None,
    *,
    data: Any = None,
    tasks: Sequence[Task] = (),
    progress: bool = True,
) -> Reproduction:
    """Run an evaluation again as its report records it, and say whether every figure is the same.

    Args:
        report: What `nb.evaluate` returned, or `nb.Report.load` read.
        lm: The model; of a report of several, by name. `None`: the one that was measured in this session, or else the
            one that opens under the recorded name, a published one or a run.
        data: As for `nb.evaluate`. `None`: what was measured in this session, or else what the recorded relative path
            or hub name gives.
        tasks: Tasks of one's own that the report names.
        progress: Whether a line says how far it is.

    Raises:
        UserError: The report records no evaluation, or a model or data that cannot be found again; give them.
    """
    if not isinstance(report, Report):
        raise UserError(
            f"{type(report).__name__} is not a report.",
            hint='nb.reproduce(report); nb.Report.load("report.json") reads one.',
        )
    if not report.provenance:
        raise UserError("The report records no evaluation.", hint="Give what nb.evaluate returned.")
    figures: list[Reproduced] = []
    changed: list[tuple[str, str, str]] = []
    new: list[Report] = []
    for record in report.provenance:
        chosen = [
            _task(each, [*tasks, *(report.inputs.tasks if report.inputs else ())]) for each in record.tasks
        ]
        settings: Any = {**record.config, "reuse": False}  # to run it again is to compute it again
        again = evaluate(
            _model(record, lm, report.inputs),
            list({task.name: task for task in chosen}.values()),
            data=_data(record, data, report.inputs),
            progress=progress,
            **settings,
        )
        new.append(again)
        changed += _changed(record, again.provenance[0])
        figures += _figures(report, record.model, again)
    whole = new[0] if len(new) == 1 else Report(f"{report.title}, again")
    if len(new) > 1:
        whole.add(*new)
    return Reproduction(whole, tuple(figures), tuple(dict.fromkeys(changed)))


def _model(
    record: Provenance, given: LM | Remote | Mapping[str, LM | Remote] | None, inputs: Inputs | None
) -> LM | Remote:
    from nbllm.opening import load

    name = f" {record.model!r}" if record.model else ""
    hint = 'Give it: nb.reproduce(report, lm), or of several models nb.reproduce(report, {"small": a, ...}).'
    if isinstance(given, Mapping):
        if record.model not in given:
            raise UserError(
                f"The report measured the model{name}, and it is not among those given.", hint=hint
            )
        return given[record.model]
    if given is not None:
        return given
    kept = inputs.models.get(record.model) if inputs else None
    model = kept() if kept else None
    if model is not None:
        return model
    if (
        record.device == REMOTE
    ):  # a report that someone sent shall choose no server, which would be sent the key
        raise UserError(
            f"The report measured the remote model {record.origin}, which must be given again.",
            hint="nb.reproduce(report, nb.evaluation.Remote(url, model=...))",
        )
    if not record.origin:
        raise UserError(f"Where the model{name} came from is not recorded.", hint=hint)
    run = re.fullmatch(r"(.+) at step (\d+)", record.origin)
    try:
        return load(run[1], at_step=int(run[2])) if run else load(record.origin)
    except UserError as error:
        raise UserError(
            f"The model{name} cannot be opened as {record.origin!r}: {error.what}", hint=hint
        ) from error


def _task(record: TaskRecord, given: Sequence[Task]) -> Task:
    for task in given:
        if task.name == record.task and TaskRecord(**_settings(task, record)).settings == record.settings:
            return task
    if record.task not in TASKS:
        raise UserError(
            f"The report measured the task {record.task!r}, which is not registered here.",
            hint="Give it: nb.reproduce(report, tasks=[task]).",
        )
    return TASKS[record.task].from_dict(dict(record.settings))


def _settings(task: Task, record: TaskRecord) -> dict[str, Any]:
    """Return the fields of a record with a task's settings."""
    return {**dataclasses.asdict(record), "settings": task.to_dict()}


def _data(record: Provenance, given: Any, inputs: Inputs | None) -> Any:
    if given is not None or inputs is not None:
        return given if given is not None else inputs.data if inputs else None
    out: dict[str, Any] = {}
    for each in record.tasks:
        if each.location is None:
            raise UserError(
                f"The data of {each.task!r} were given as an object or by an absolute path ({each.source}), which a "
                "report does not keep.",
                hint="Give them: nb.reproduce(report, data=...), as nb.evaluate had them.",
            )
        place = each.location or None
        if each.data and place is not None:
            out.setdefault(each.task, {})[each.data] = place
        else:
            out[each.task] = place
    return out


def _figures(report: Report, model: str, again: Report) -> Iterator[Reproduced]:
    now: dict[Any, Measurement] = {figure_key(each): each for each in again.measurements()}
    by_name = {
        (each.metric, each.subject and (each.subject.task, each.subject.data)): each for each in now.values()
    }
    old = {
        figure_key(each): each
        for each in report.measurements()
        if each.metric and each.signature and each.model == model
    }
    several = len({each.subject.task for each in old.values() if each.subject}) > 1
    for key, each in old.items():
        subject = each.subject and (each.subject.task, each.subject.data)
        found = now.get(key) or by_name.get(
            (each.metric, subject)
        )  # of other data: it differs, and is told so
        value = None if found is None else found.value
        named = with_task(each) if several else each
        yield Reproduced(named.name, each.value, value, _verdict(each, found))


def _verdict(recorded: Measurement, now: Measurement | None) -> str:
    if now is None:
        return MISSING
    if recorded.value == now.value:
        return IDENTICAL
    if recorded.value is None or now.value is None:
        return DIFFERS
    close = math.isclose(recorded.value, now.value, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return AGREES if close else DIFFERS


def _changed(then: Provenance, now: Provenance) -> Iterator[tuple[str, str, str]]:
    """Yield what is not as it was."""
    name = f" of {then.model}" if then.model else ""
    for field, what in (
        (("origin", "endpoint"),)
        if REMOTE in (then.device, now.device)
        else (("model_sha256", "weights and tokenizer"), ("dtype", "dtype"), ("device", "device"))
    ):
        old, new = getattr(then, field), getattr(now, field)
        if old != new:
            yield what + name, old, new
    tasks = {(each.task, each.data): each for each in now.tasks}
    for each in then.tasks:
        other = tasks.get((each.task, each.data))
        for field, what in (("data_sha256", "data"), ("prompts_sha256", "prompts")):
            if other is not None and getattr(each, field) != getattr(other, field):
                yield f"{what} of {each.task}", getattr(each, field), getattr(other, field)
    for field in ("versions", "machine"):
        old, new = getattr(then, field), getattr(now, field)
        for key in {**old, **new}:
            if old.get(key) != new.get(key):
                yield f"{field.removesuffix('s')}: {key}", str(old.get(key)), str(new.get(key))
