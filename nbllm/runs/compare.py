"""Several runs compared: their curves in one chart, their results, the settings in which they differ."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nbllm.core.chart import Series, line_chart
from nbllm.core.errors import RunError, listed
from nbllm.core.html import Raw, escape, fragment, is_numeric, table
from nbllm.core.quantities import column, duration, number
from nbllm.core.report.curves import curve_line
from nbllm.core.report.report import Report
from nbllm.core.report.sections import Chart, KeyValues, Section, Table
from nbllm.core.text_table import text_table
from nbllm.runs.actions import words
from nbllm.runs.locating import locate
from nbllm.runs.run import Run
from nbllm.runs.snapshot import CSS, badge
from nbllm.runs.timeline import Timeline

COMPARED = ("config", "model", "choices", "data")  # the parts of a record that a person chose or that follow
WINDOWS = 60  # a training curve is smoothed over this share of it: several together are a thicket
LAST = 20  # steps whose mean is a run's training loss: one step's loss is mostly noise
MOST_CELL = 100
MISSING = "\N{EN DASH}"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Several runs compared; shown in a cell as curves and tables.

    Args:
        runs: The runs, in the order given.
        names: What each is called here: its name, or folder and name where two runs share one.
    """

    runs: tuple[Run, ...]
    names: tuple[str, ...]

    def curves(self, metric: str = "loss") -> dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
        """Return (steps, values) of a metric by name of the run; empty arrays for a run that has none."""
        return {
            name: run.history(metric)
            if metric in run.timeline.metrics
            else (np.empty(0, np.int64), np.empty(0))
            for name, run in zip(self.names, self.runs, strict=True)
        }

    def settings(self) -> dict[str, tuple[Any, ...]]:
        """Return every setting with its value in each run, as it is now, `None` where a run has none."""
        flat = [
            _flatten({part: run.record.get(part) for part in COMPARED})
            | {f"config.{name}": value for name, value in run.settings.values.items()}
            | _rules(run)
            for run in self.runs
        ]
        for values in flat:
            values.pop("config.rules", None)  # as it was started with; those of now are beside it
            for part in (
                "train",
                "validation",
            ):  # where the cache keeps the tokens; the fingerprint says which
                values.pop(f"data.{part}.path", None)
        keys = dict.fromkeys(key for values in flat for key in values)
        return {key.removeprefix("config."): tuple(values.get(key) for values in flat) for key in keys}

    def differences(self) -> dict[str, tuple[Any, ...]]:
        """Return the settings that are not the same in all runs."""
        return {key: values for key, values in self.settings().items() if any(v != values[0] for v in values)}

    @property
    def loss_unit(self) -> str:
        """What the losses of all runs are measured in, with a comma before it; "" where they differ or do not say."""
        units = {run.summary.loss_unit for run in self.runs}
        return f", {unit}" if len(units) == 1 and (unit := units.pop()) else ""

    @property
    def _drawn(self) -> dict[str, str]:
        """The metrics that have a chart, with its label; the held-out one in bits per byte where all runs have it."""
        metrics = [run.timeline.metrics for run in self.runs]
        lacking = any("evaluation.loss" in of and "evaluation.bits_per_byte" not in of for of in metrics)
        held_out = (
            ("loss", f"held-out loss{self.loss_unit}")
            if lacking
            else ("bits_per_byte", "held-out, bits/byte")
        )
        return {"loss": f"training loss{self.loss_unit}", f"evaluation.{held_out[0]}": held_out[1]}

    def results(self) -> list[tuple[Any, ...]]:
        """Return a row for each result: what it is, then its value in each run (`None`: there is none)."""
        timelines = [run.timeline for run in self.runs]
        summaries = [run.summary for run in self.runs]
        rows: list[tuple[Any, ...]] = [
            ("state", *(s.label for s in summaries)),
            ("forked from", *(s.parent_text if s.parent else None for s in summaries)),
            ("replay of", *(s.replay_of or None for s in summaries)),
            ("steps", *(s.step for s in summaries)),
            (
                f"training loss{self.loss_unit} (last {LAST})",
                *(_recent_loss(timeline) for timeline in timelines),
            ),
            (f"held-out loss{self.loss_unit}", *(s.held_out_loss for s in summaries)),
            ("held-out bits/byte", *(s.bits_per_byte for s in summaries)),
            ("best held-out bits/byte", *(_least(t.history("evaluation.bits_per_byte")) for t in timelines)),
            ("tokens", *(None if s.tokens is None else int(s.tokens) for s in summaries)),
            ("trained for", *(None if s.seconds is None else duration(s.seconds) for s in summaries)),
            ("steered", *(_steered(timeline) for timeline in timelines)),
        ]
        return [row for row in rows if any(value is not None for value in row[1:])]

    def sections(self) -> list[Section]:
        """Return the comparison as sections of a report: `report.add(nb.compare(...))`."""
        different = self.differences()
        same = {key: values[0] for key, values in self.settings().items() if key not in different}
        header = ("", *self.names)
        parts: list[Section] = [
            Table(
                title=self._title,
                header=header,
                rows=tuple((label, *_texts(values)) for label, *values in self.results()),
                caption="The results of the runs.",
            )
        ]
        for metric, label in self._drawn.items():
            series = self._smoothed(metric)
            if series is not None:
                lines, smoothing = series
                parts.append(
                    Chart(
                        x_label="step",
                        y_label=label,
                        lines=tuple(curve_line(each.name, each.x, each.y) for each in lines),
                        caption=f"{label[:1].upper()}{label[1:]}{smoothing}, by run.",
                    )
                )
        if different:
            rows = tuple((key, *_texts(values)) for key, values in different.items())
            parts.append(Table(header=header, rows=rows, caption="Settings that differ."))
        entries = tuple((key, value_text(value)) for key, value in same.items())
        parts.append(KeyValues(title="Settings that are the same", entries=entries))
        return parts

    def report(self) -> Report:
        """Return a report of the comparison alone."""
        results, *rest = self.sections()
        return Report(self._title).add(dataclasses.replace(results, title=""), *rest)

    @property
    def _title(self) -> str:
        return f"Comparison of {listed(self.names, quote=False, most=4)}"

    def save(self, path: str | Path) -> Path:
        """Write the comparison as .html, .md, .json or .pdf; returns and errors as `Report.save`."""
        return self.report().save(path)

    def __repr__(self) -> str:
        rows = [
            ("", *self.names),
            *self.results(),
            *((key, *values) for key, values in self.differences().items()),
        ]
        return text_table([[value_text(value) for value in row] for row in rows])

    def _repr_html_(self) -> str:
        different = self.differences()
        same = {key: values[0] for key, values in self.settings().items() if key not in different}
        results = [
            (row[0], *(badge(v) for v in row[1:])) if row[0] == "state" else (row[0], *map(_cell, row[1:]))
            for row in self.results()
        ]
        parts = [
            f"<style>{CSS}</style>",
            *(self._chart(metric, label) for metric, label in self._drawn.items()),
            table(results, ("", *self.names), row_headers=True),
            "<h3>Settings that differ</h3>",
            table(
                [(key, *map(_cell, values)) for key, values in different.items()],
                ("", *self.names),
                row_headers=True,
            )
            if different
            else '<p class="muted">None.</p>',
            f"<details><summary>{len(same)} settings are the same</summary>"
            f"{table([(key, _cell(value)) for key, value in same.items()], row_headers=True)}</details>",
        ]
        return fragment("".join(parts))

    def _chart(self, metric: str, label: str) -> str:
        smoothed = self._smoothed(metric)
        if smoothed is None:
            return ""
        series, note = smoothed
        return line_chart(series, x_label="step", y_label=f"{label}{note}")

    def _smoothed(self, metric: str) -> tuple[list[Series], str] | None:
        """Return a metric's curves, and how they were smoothed; `None` where no run has one.

        Every run keeps its place, and with it its colour, also where it has no points.
        """
        curves = self.curves(metric)
        longest = max(len(steps) for steps, _ in curves.values())
        if not longest:
            return None
        window = max(1, longest // WINDOWS) if metric == "loss" else 1
        series = [
            Series(name, steps.tolist(), _running_mean(values, window).tolist())
            for name, (steps, values) in curves.items()
        ]
        return series, "" if window == 1 else f" (mean of {window:,} steps)"


def compare(runs: Iterable[Run | str | Path] | Run | str | Path, *more: Run | str | Path) -> Comparison:
    """Compare runs.

    Args:
        runs: Runs, their names in `runs/` or their folders: a list, what `nb.runs()` returned, or one after the other.
        more: Further runs.

    Raises:
        RunError: None is given, or there is no such run; the nearest name is given.
    """
    first = [*runs] if isinstance(runs, Iterable) and not isinstance(runs, str) else [runs]
    opened = [item if isinstance(item, Run) else Run(locate(item)) for item in (*first, *more)]
    if not opened:
        raise RunError(
            "There are no runs to compare.", hint="nb.compare([run, other]); nb.runs() lists what there is."
        )
    taken = Counter(run.name for run in opened)
    names = [run.name if taken[run.name] == 1 else f"{run.path.parent.name}/{run.name}" for run in opened]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return Comparison(tuple(opened), tuple(names))


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= _flatten(item, f"{prefix}{key}.")
        elif item is not None or prefix:
            flat[f"{prefix}{key}"] = item
    return flat


def _rules(run: Run) -> dict[str, str]:
    """Return what each rule of a run does, in words, by a name for its row."""
    return {
        f"rule {rule.name}": f"{rule.do} when {rule.when}{'' if rule.is_on else ' (off)'}"
        for rule in run.rules
    }


def _running_mean(values: np.ndarray[Any, Any], window: int) -> np.ndarray[Any, Any]:
    """Return the mean of each value and the `window - 1` before it, as far as there are; NaN is left out."""
    if window == 1:
        return values
    good = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(good, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(good)])
    end = np.arange(1, len(values) + 1)
    begin = np.maximum(0, end - window)
    with np.errstate(invalid="ignore", divide="ignore"):
        means: np.ndarray[Any, Any] = (sums[end] - sums[begin]) / (counts[end] - counts[begin])
    return means


def _recent_loss(timeline: Timeline) -> float | None:
    values = timeline.history("loss")[1][-LAST:]
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None


def _least(history: tuple[Any, Any]) -> float | None:
    values = history[1]
    finite = values[np.isfinite(values)]
    return float(finite.min()) if len(finite) else None


def _steered(timeline: Timeline) -> str | None:
    shown = [f"{words(action.action, action.args)} at {action.step}" for action in timeline.effective[-5:]]
    hidden = len(timeline.effective) - len(shown)
    return "; ".join([*([f"{hidden} more"] if hidden else []), *shown]) or None


def value_text(value: Any) -> str:
    """Return a setting or a result as text, a long one shortened."""
    if value is None:
        return MISSING
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number(value)
    text = str(value)
    return text if len(text) <= MOST_CELL else text[: MOST_CELL - 3] + "..."


def _texts(values: Sequence[Any]) -> list[str]:
    """Return the values of a row as text, numbers with as many decimals as each other."""
    return column(values, MISSING) if is_numeric(values) else [value_text(value) for value in values]


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        return value
    return Raw(escape(value_text(value)))
