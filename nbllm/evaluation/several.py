"""Several models side by side: one report of theirs, with every pair compared example by example."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nbllm.core.errors import UserError
from nbllm.core.report.figures import Comparison, Measurement, Subject
from nbllm.core.report.report import Report
from nbllm.core.report.sections import Comparisons, KeyValues, Measurements, Rows, Section, Table, shortened
from nbllm.core.report.values import Cell
from nbllm.core.seeding import derive
from nbllm.evaluation.comparison import check_comparable, figure_key, first_rows, metric_of, rows_by_subject
from nbllm.evaluation.config import EvaluationConfig
from nbllm.evaluation.reproduction import REPRODUCTION
from nbllm.evaluation.significance import (
    POWER,
    approximate_randomization,
    effect_size,
    examples_needed,
    flips,
    holm,
    mcnemar,
)
from nbllm.evaluation.statistics import clusters_of, difference

if TYPE_CHECKING:
    from nbllm.evaluation.columns import Columns
    from nbllm.evaluation.metrics.base import Metric

_SHOWN_FLIPS = 50
_GAP = "not measured"


def compare_reports(
    reports: Mapping[str, Report], config: EvaluationConfig | None = None, *, title: str | None = None
) -> Report:
    """Return one report of several models: their figures side by side, and every pair of models compared.

    The rows of the reports are what is compared, so that reports which were saved serve as well.

    Args:
        reports: By the name of the model, what `nb.evaluate` returned or `nb.Report.load` read: of the same tasks on
            the same examples.
        config: Confidence, resamples and seed of intervals and tests.
        title: The report's title.

    Raises:
        UserError: There are fewer than two, or they did not measure the same.
    """
    config = config or EvaluationConfig()
    if len(reports) < 2:
        raise UserError(
            f"A comparison needs two models, not {len(reports)}.",
            hint='Give two or more by name: {"small": ..., "large": ...}.',
        )
    names = list(reports)
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{name!r} is no name of a model.", hint='{"small": ..., "large": ...}')
    for name in names[1:]:
        try:
            check_comparable(reports[names[0]], list(rows_by_subject(reports[name])))
        except UserError as error:
            what = f"{names[0]!r} and {name!r} were not measured alike. {error.what}"
            raise UserError(what, hint=error.hint) from error
    reports = {name: _with_tasks(report) for name, report in reports.items()}
    out = Report(title or f"{', '.join(names[:-1])} and {names[-1]} compared")
    compared = comparisons(reports, config)
    out.add(_summary(reports), _side_by_side(reports), compared, *_flip_tables(compared, reports))
    for name, report in reports.items():
        out.add(*_of_model(name, report))
        out.provenance += tuple(dataclasses.replace(each, model=name) for each in report.provenance)
    out.add(*_reproduction(reports))
    kept = {name: report.inputs for name, report in reports.items() if report.inputs is not None}
    if len(kept) == len(reports):
        models = {name: inputs.models[""] for name, inputs in kept.items()}
        out.inputs = dataclasses.replace(kept[names[0]], models=models)
    return out


def _with_tasks(report: Report) -> Report:
    """Return a report of several tasks with the name of the task before each figure's: two may have an accuracy."""
    if len({subject.task for subject in rows_by_subject(report)}) < 2:
        return report
    sections = [
        dataclasses.replace(section, measurements=tuple(map(with_task, section.measurements)))
        if isinstance(section, Measurements)
        else section
        for section in report.sections
    ]
    return dataclasses.replace(report, sections=sections)


def with_task(figure: Measurement) -> Measurement:
    """Return a figure with the name of its task before its own."""
    if figure.subject is None or figure.name.startswith(f"{figure.subject.task}: "):
        return figure
    return dataclasses.replace(figure, name=f"{figure.subject.task}: {figure.name}")


def comparisons(reports: Mapping[str, Report], config: EvaluationConfig) -> Comparisons:
    """Return every pair of models compared by every figure that compares them.

    Args:
        reports: By the name of the model, of the same subjects.
        config: Confidence, resamples and seed.
    """
    found = [
        compared
        for pair in itertools.combinations(reports, 2)
        for compared in _pair((pair[0], reports[pair[0]]), (pair[1], reports[pair[1]]), config)
    ]
    families: dict[int, list[int]] = {}
    for i, each in enumerate(found):
        if each.test:
            families.setdefault(_rank(found, each), []).append(i)
    for family in families.values():
        corrected = holm([found[i].p_values[found[i].test] for i in family])
        for i, p_value in zip(family, corrected, strict=True):
            found[i] = dataclasses.replace(found[i], p_corrected=p_value)
    return Comparisons(
        title="Compared",
        comparisons=tuple(found),
        note=" ".join(_told(each) for each in found[: len(reports)]),
        caption=(
            "Difference is the second model minus the first, with the interval of paired bootstrap resamples. "
            "P-values are two-sided: McNemar's exact test, the paired bootstrap and approximate randomization "
            f"({config.resamples:,} resamples and exchanges). Holm's correction for the number of tasks and pairs of "
            "models is applied to McNemar's, or to that of approximate randomization where answers are no proportion "
            "or come in clusters; first figures of tasks are one family, second ones another. Effect size is Cohen's "
            "d of the paired differences. Examples needed would show a difference of this size with "
            f"{POWER:.0%} power."
        ),
    )


def _rank(found: Sequence[Comparison], each: Comparison) -> int:
    """Return the place of a figure among those of its task: the first figures of all tasks are corrected together."""
    names = [other.name for other in found if other.models == each.models and other.subject == each.subject]
    return names.index(each.name)


def _pair(one: tuple[str, Report], two: tuple[str, Report], config: EvaluationConfig) -> Iterator[Comparison]:
    """Yield the comparisons of two models, each given with its name."""
    models = (one[0], two[0])
    first, second = rows_by_subject(one[1]), rows_by_subject(two[1])
    measured = {figure_key(each) for each in two[1].measurements()}
    for figure in {figure_key(each): each for each in one[1].measurements()}.values():
        metric, subject = metric_of(figure), figure.subject
        if metric is None or subject is None or not metric.of_model or not metric.resampled:
            continue
        if figure_key(figure) not in measured:
            continue
        rows = (first[subject], second[subject])
        num_rows = min(map(len, rows))
        columns = (first_rows(rows[0], num_rows), first_rows(rows[1], num_rows))
        if all(
            np.array_equal(columns[0][name], columns[1][name]) for name in metric.comparable_by
        ):  # as many tokens
            yield _compared(figure, models, metric, columns, rows[0].cluster, config)


def _compared(
    figure: Measurement,
    models: tuple[str, str],
    metric: Metric,
    columns: tuple[Columns, Columns],
    cluster: str,
    config: EvaluationConfig,
) -> Comparison:
    one, two = columns
    clusters = None if metric.strata else clusters_of(one, cluster)
    found = difference(metric, one, two, config, clusters)
    num_rows = len(next(iter(one.values())))
    tests: dict[str, float] = {}
    right = (metric.outcomes(one), metric.outcomes(two))
    alone: tuple[int, int] | None = None
    flipped: list[int] = []
    if right[0] is not None and right[1] is not None:
        first, second, flipped = flips(right[0], right[1])
        alone = (first, second)
        tests["mcnemar"] = mcnemar(*alone)
    if found.interval is not None:
        generator = np.random.default_rng(derive(config.seed, "randomization"))
        tests["bootstrap"] = found.p_value
        tests["randomization"] = approximate_randomization(
            metric, one, two, config.resamples, generator, clusters
        )
    independent = clusters is None and "mcnemar" in tests
    test = "mcnemar" if independent else "randomization" if "randomization" in tests else ""
    needed = examples_needed(found.value, found.error, num_rows, config.confidence)
    return Comparison(
        name=figure.name,
        models=models,
        values=(found.before, found.after),
        interval=found.interval,
        confidence=config.confidence,
        metric=metric.name,
        subject=figure.subject,
        better=metric.better,
        num_rows=num_rows,
        p_values=tests,
        test=test,
        effect=effect_size(found.value, found.error, num_rows),
        needed=int(needed) if math.isfinite(needed) else None,
        alone=alone,
        flips=tuple(flipped),
    )


def _told(each: Comparison) -> str:
    first, second, change, interval = each.texts
    what = f"{each.name[:1].upper()}{each.name[1:]}: {each.models[0]} {first}, {each.models[1]} {second}"
    if each.winner:
        return f"{what}; {each.winner} is better, the difference is {change} ({interval})."
    return f"{what}; corrected for the number of comparisons, the difference of {change} may be chance."


def _summary(reports: Mapping[str, Report]) -> Measurements:
    """Return each model's first figure of each task."""
    figures = []
    for name, report in reports.items():
        firsts: dict[Subject, Measurement] = {}
        for figure in report.measurements():
            if figure.subject is not None:
                firsts.setdefault(figure.subject, dataclasses.replace(figure, note=""))
        figures += [_named(figure, name) for figure in firsts.values()]
    return Measurements(title="Summary", measurements=tuple(figures), prominent=True)


def _side_by_side(reports: Mapping[str, Report]) -> Table:
    figures: dict[tuple[object, ...], dict[str, Measurement]] = {}
    for name, report in reports.items():
        for figure in report.measurements():
            if figure.subject is not None:
                key = (figure.name, figure.unit, figure.subject)
                figures.setdefault(key, {}).setdefault(name, figure)
    rows = []
    for (title, unit, _), found in figures.items():
        cells: list[Cell] = [f"{title} ({unit})" if unit else str(title)]
        cells += [_cell(found[name]) if name in found else _GAP for name in reports]
        rows.append(tuple(cells))
    return Table(
        title="Side by side",
        header=("measure", *reports),
        rows=tuple(rows),
        caption=f"Each figure with its interval ({_confidence(reports)}).",
    )


def _cell(figure: Measurement) -> str:
    interval = figure.interval_text.partition(" (")[0]
    return f"{figure.value_text} ({interval})" if interval else figure.value_text


def _confidence(reports: Mapping[str, Report]) -> str:
    found = {
        figure.confidence
        for report in reports.values()
        for figure in report.measurements()
        if figure.interval
    }
    return " and ".join(f"{100 * each:.3g} %" for each in sorted(found))


def _flip_tables(compared: Comparisons, reports: Mapping[str, Report]) -> Iterator[Table]:
    """Yield for each pair and proportion the examples that one model alone has right."""
    for each in compared.comparisons:
        if not each.flips or each.subject is None:
            continue
        rows = [rows_by_subject(reports[name])[each.subject] for name in each.models]
        names = [name for name in rows[0].columns if any(name in part.shown_columns for part in rows)]
        same = [name for name in names if rows[0].columns[name] == rows[1].columns[name]]
        other = [name for name in names if name not in same]
        header = ["example", *same, *(f"{name}, {model}" for name in other for model in each.models)]
        table = []
        for index in each.flips[:_SHOWN_FLIPS]:
            cells = [rows[0].columns[name][index] for name in same]
            cells += [part.columns[name][index] for name in other for part in rows]
            table.append((index + 1, *(shortened(cell) for cell in cells)))
        count = len(each.flips)
        counted = "1 example" if count == 1 else f"{count:,} examples"
        first = f"the first {_SHOWN_FLIPS} of " if count > _SHOWN_FLIPS else ""
        yield Table(
            header=tuple(header),
            rows=tuple(table),
            folded=f"{each.name}: {first}{counted} that {each.models[0]} or {each.models[1]} alone has right",
        )


def _reproduction(reports: Mapping[str, Report]) -> list[Section]:
    """Return what is needed to reproduce the figures: once where that is the same for all models."""
    found = {
        name: section for name, report in reports.items() for section in report.sections if _is_facts(section)
    }
    if len(set(map(repr, found.values()))) == 1:
        return [next(iter(found.values()))]
    return [dataclasses.replace(section, title=f"{section.title}: {name}") for name, section in found.items()]


def _is_facts(section: Section) -> bool:
    return isinstance(section, KeyValues) and section.title == REPRODUCTION


def _of_model(name: str, report: Report) -> Iterator[Section]:
    """Yield the sections of a model's report, its name in their titles and figures."""
    for section in report.sections:
        if _is_facts(section) or (isinstance(section, Measurements) and section.prominent):
            continue
        if isinstance(section, Measurements):
            figures = tuple(_named(figure, name) for figure in section.measurements)
            section = dataclasses.replace(section, measurements=figures)
        elif isinstance(section, Rows):
            section = dataclasses.replace(section, model=name)
        yield dataclasses.replace(section, title=f"{section.title}: {name}") if section.title else section


def _named(figure: Measurement, model: str) -> Measurement:
    return dataclasses.replace(figure, name=f"{figure.name}, {model}", model=model)
