"""Comparison of two reports on the same examples: what changed, with intervals of the paired differences."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from nbllm.core.errors import UserError
from nbllm.core.quantities import fixed, iso_minute
from nbllm.core.report.figures import Change, Measurement, Subject
from nbllm.core.report.report import Report
from nbllm.core.report.sections import Changes, Rows
from nbllm.evaluation.columns import Columns, to_arrays
from nbllm.evaluation.config import EvaluationConfig
from nbllm.evaluation.metrics.base import Metric
from nbllm.evaluation.metrics.catalogue import METRICS
from nbllm.evaluation.statistics import Difference, clusters_of, difference, recorded


def check_comparable(before: Report, subjects: Collection[Subject]) -> None:
    """Check that an earlier report measured just these subjects.

    Raises:
        UserError: It is not a report that was measured, or differs in a task, its settings or its examples.
    """
    if not isinstance(before, Report):
        raise UserError(
            f"against must be a report, not {type(before).__name__}.",
            hint="Give what nb.evaluate returned, or nb.Report.load(path) of its .json.",
        )
    earlier = set(rows_by_subject(before))
    if not earlier:
        raise UserError("The report given as against holds nothing that was measured example by example.")
    if earlier == set(subjects):
        return
    now = {(subject.task, subject.data): subject for subject in subjects}
    then = {(subject.task, subject.data): subject for subject in earlier}
    if now.keys() != then.keys():
        raise UserError(
            f"The earlier report measured {_words(earlier)}; this one is to measure {_words(subjects)}.",
            hint="Give both the same tasks and data.",
        )
    key = next(key for key in now if now[key] != then[key])
    _raise_difference(then[key], now[key])


def _raise_difference(then: Subject, now: Subject) -> None:
    """Raise the error that says in what two subjects of one task and name differ."""
    old, new = dict(then.settings), dict(now.settings)
    name = next((name for name in old | new if old.get(name) != new.get(name)), None)
    if name is None:
        data = f"the data {now.data!r}" if now.data else "the data"
        raise UserError(
            f"The examples of {data} are not those that the earlier report measured.",
            hint="Give both the same examples in the same order, and the same limit.",
        )
    raise UserError(
        f"The earlier report measured {now.name(now.task)} with {name}={old.get(name)}, this one has {new.get(name)}.",
        hint=f"Give both the same {name}.",
    )


def comparison_section(before: Report, after: Report, config: EvaluationConfig) -> Changes:
    """Return what changed: each figure before and after, the change, and the interval of the change.

    A figure is left out where the two models cannot be compared by it, as by a figure per token where they cut the
    text into different tokens. Where a measurement was interrupted, both are compared on the examples that both
    measured.

    Args:
        before: The earlier report.
        after: The later one, of the same subjects.
        config: Confidence, resamples and seed of the intervals.
    """
    earlier, later = rows_by_subject(before), rows_by_subject(after)
    had = {figure_key(each) for each in before.measurements() if each.metric}
    changes: list[Change] = []
    notes = [f"Before: {before.title}, measured {iso_minute(before.created)}."]
    told: set[Subject] = set()
    for now in after.measurements():
        metric = metric_of(now)
        if metric is None or now.subject is None or not metric.of_model:
            continue
        if now.subject not in earlier or figure_key(now) not in had:
            notes.append(f"The earlier report lacks {now.name}.")
            continue
        old, new = earlier[now.subject], later[now.subject]
        num_rows = min(len(old), len(new))
        columns = [first_rows(rows, num_rows) for rows in (old, new)]
        if any((columns[0][name] != columns[1][name]).any() for name in metric.comparable_by):
            agree = " and ".join(name.removeprefix("num_") for name in metric.comparable_by)
            notes.append(f"{_sentence_case(now.name)} is left out: the models count by different {agree}.")
            continue
        clusters = clusters_of(columns[1], new.cluster)
        found = difference(metric, columns[0], columns[1], config, clusters)
        changes.append(
            Change(
                name=now.name,
                before=found.before,
                after=found.after,
                **recorded(metric, found, config),
            )
        )
        if now.subject not in told:  # the first figure of a task is the one to tell
            told.add(now.subject)
            notes.append(_told(now.name, found))
            if len(old) != len(new):
                notes.append(f"A measurement was interrupted: compared on the first {num_rows} {new.unit}.")
    return Changes(
        title="Before and after",
        note=" ".join(notes),
        changes=tuple(changes),
        caption=(
            "Change is after minus before. Its interval is that of the paired difference: each of "
            f"{config.resamples:,} bootstrap resamples draws the same {_units(later.values())} for both."
        ),
    )


def rows_by_subject(report: Report) -> dict[Subject, Rows]:
    """Return the rows of everything that a report measured example by example."""
    return {section.subject: section for section in report.sections if isinstance(section, Rows)}


def first_rows(rows: Rows, count: int) -> Columns:
    """Return the columns of the first rows, as metrics read them."""
    return to_arrays({name: values[:count] for name, values in rows.columns.items()})


def figure_key(measured: Measurement) -> tuple[object, ...]:
    """Return what a figure has in common with the same figure of another model."""
    return measured.subject, measured.metric, measured.settings


def metric_of(measured: Measurement) -> Metric | None:
    """Return the metric that computed a figure; `None` for a figure that none did."""
    return METRICS[measured.metric].from_dict(dict(measured.settings)) if measured.metric else None


def _told(name: str, found: Difference) -> str:
    """Return the change in a sentence."""
    if found.value == 0:
        return f"{_sentence_case(name)} did not change."
    verb = "fell" if found.value < 0 else "rose"
    before, after = fixed(found.before), fixed(found.after, like=found.before)
    sentence = f"{_sentence_case(name)} {verb} from {before} to {after}"
    if found.before:
        sentence += f", by {abs(found.value / found.before):.1%}"
    if found.interval is not None and found.interval[0] <= 0 <= found.interval[1]:
        sentence += "; the interval of the change includes zero"
    return f"{sentence}."


def _units(rows: Iterable[Rows]) -> str:
    """Return what is drawn: "documents", or "examples and clusters of questions"."""
    units = {
        each.unit
        if clusters_of(to_arrays(each.columns), each.cluster) is None
        else f"clusters of {each.unit}"
        for each in rows
    }
    return " and ".join(sorted(units))


def _words(subjects: Iterable[Subject]) -> str:
    """Return "perplexity on mine, perplexity on other"."""
    return ", ".join(sorted(subject.name(subject.task) for subject in subjects))


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]
