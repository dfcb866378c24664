"""The sections of a report that describe a training run, from the run's own record and events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nbllm.core.downsample import downsample
from nbllm.core.quantities import duration, moment, size
from nbllm.core.report.figures import Measurement
from nbllm.core.report.sections import Chart, Event, KeyValues, Line, Sample, Samples, Section, Table, Text
from nbllm.core.report.values import Cell
from nbllm.runs.actions import words

if TYPE_CHECKING:
    from nbllm.runs.actions import Action
    from nbllm.runs.run import Run
    from nbllm.runs.summary import RunSummary

_POINTS = 2400  # of a curve, at most
_SAMPLES = 6
_MARKED = frozenset({"set", "freeze", "unfreeze", "rewind", "pause", "stop"})


def run_sections(run: Run) -> list[Section]:
    """Return a run's summary, curves, actions and samples."""
    parts = [_course(run), _curve(run), _learning_rate(run), _actions(run), _samples(run)]
    return [part for part in parts if part is not None]


def run_details(run: Run) -> list[Section]:
    """Return a run's settings and checkpoints, for reference."""
    parts = [_settings(run), _checkpoints(run)]
    return [part for part in parts if part is not None]


def training_metrics(run: Run) -> list[Measurement]:
    """Return the figures of a run that belong in a summary."""
    summary = run.summary
    metrics = [Measurement(name="training steps", value=summary.step, note=_of(summary))]
    tokens, seconds = summary.tokens, summary.seconds
    if tokens is not None and seconds is not None:
        value, unit = (round(seconds / 60, 1), "min") if seconds >= 60 else (round(seconds, 1), "s")
        note = f"{int(tokens):,} tokens"
        metrics.append(Measurement(name="training time", value=value, unit=unit, note=note))
    return metrics


def _of(summary: RunSummary) -> str:
    planned = summary.steps if summary.steps != summary.step else None
    parts = [summary.state, f"of {planned:,} planned" if planned else ""]
    return ", ".join(part for part in parts if part)


def _course(run: Run) -> Text:
    """Return a summary of the run in sentences."""
    summary, timeline = run.summary, run.timeline
    planned = f" of {summary.steps:,} planned" if summary.steps and summary.steps != summary.step else ""
    sentences = [f"The run {run.name} took {summary.step:,} steps{planned} and is {summary.state}."]
    if summary.reason and summary.state != "finished":
        sentences.append(f"The reason given: {summary.reason.rstrip('.')}.")
    tokens, seconds = summary.tokens, summary.seconds
    if tokens and seconds:
        sentences.append(
            f"It saw {int(tokens):,} tokens in {duration(seconds)} of training, "
            f"{tokens / seconds:,.0f} tokens a second."
        )
    if summary.parent:
        at = "?" if summary.parent_step is None else summary.parent_step
        sentences.append(f"It is a fork of {summary.parent} at step {at}.")
    if len(timeline.starts) > 1:
        again = [f"{start['step']:,}" for start in timeline.starts[1:]]
        sentences.append(f"It was interrupted, and resumed at step {', '.join(again)}.")
    if timeline.num_warnings:
        newest = str(timeline.warnings[-1].get("text", "")).rstrip(".")
        sentences.append(f"Warnings: {timeline.num_warnings}; the newest: {newest}.")
    return Text(title="How it was trained", text=" ".join(sentences))


def _curve(run: Run) -> Chart | None:
    lines = [_line("training", *run.history("loss")), _line("held-out", *run.history("evaluation.loss"))]
    lines = [line for line in lines if line.x]
    if not lines:
        return None
    applied = [a for a in run.timeline.actions if a.outcome == "applied" and a.action in _MARKED]
    return Chart(
        x_label="step",
        y_label="loss (nats per token)",
        lines=tuple(lines),
        events=tuple(Event(x=action.step, label=words(action.action, action.args)) for action in applied),
        caption="Training and held-out loss; dashed lines mark what was done while the run went on.",
    )


def _learning_rate(run: Run) -> Chart | None:
    if "lr" not in run.timeline.metrics:
        return None
    line = _line("learning rate", *run.history("lr"))
    return Chart(
        x_label="step",
        y_label="learning rate",
        lines=(line,),
        caption="The learning rate as it was.",
        minor=True,
    )


def _line(name: str, steps: Any, values: Any) -> Line:
    keep = downsample(np.asarray(values, float), _POINTS, np.asarray(steps, float))
    return Line(
        name=name,
        x=tuple(int(step) for step in steps[keep]),
        y=tuple(float(f"{value:.6g}") for value in values[keep]),
    )


def _actions(run: Run) -> Section:
    title = "What was done while it ran"
    actions = [action for action in run.timeline.actions if action.outcome != "pending"]
    if not actions:
        return Text(title=title, text="The run was not steered.")
    return Table(
        title=title,
        header=("step", "action", "by", "outcome", "time"),
        rows=tuple(_action_row(action) for action in actions),
        caption="Every action, with the step boundary at which it was taken.",
    )


def _action_row(action: Action) -> tuple[Cell, ...]:
    outcome = f"{action.outcome}: {action.reason}" if action.reason else action.outcome
    return action.step, words(action.action, action.args), action.actor, outcome, moment(action.time)


def _samples(run: Run) -> Samples | None:
    events = run.timeline.samples
    if not events:
        return None
    chosen = [events[i] for i in _spread(len(events), _SAMPLES)]
    shown = tuple(
        Sample(
            prompt=str(event.get("prompt", "")),
            text=str(event.get("text", "")),
            label=_sample_label(event),
        )
        for event in chosen
    )
    return Samples(
        title="Samples",
        note=f"{len(shown)} of {len(events)}, spread over the run: first to last.",
        samples=shown,
    )


def _sample_label(event: Mapping[str, Any]) -> str:
    """Return "step 120, asked by person"; for samples that the loop takes at intervals, only the step."""
    actor = event.get("actor", "loop")
    return f"step {event['step']:,}" + ("" if actor == "loop" else f", asked by {actor}")


def _spread(count: int, most: int) -> Sequence[int]:
    """Return at most `most` of `count` indices, evenly spaced, first and last included."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def _checkpoints(run: Run) -> Table | None:
    infos = run.checkpoints
    if not infos:
        return None
    on_branch = run.timeline.on_branch
    rows = [
        (info.step, info.path.name, size(info.bytes), moment(info.time), "yes" if on_branch(info) else "no")
        for info in infos
    ]
    return Table(
        title="Checkpoints",
        note="Each is a model directory that nb.load and transformers open.",
        header=("step", "name", "size", "time", "on the current branch"),
        rows=tuple(rows),
    )


def _settings(run: Run) -> KeyValues:
    return KeyValues(
        title="Settings",
        note="As the run was started; changes are among the actions above.",
        entries=tuple(run.config.items()),
    )
