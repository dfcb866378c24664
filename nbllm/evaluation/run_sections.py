"""The sections of a report that describe a training run, from the run's own record and events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nbllm.core.quantities import counted, duration, moment, size
from nbllm.core.report.curves import curve_line
from nbllm.core.report.figures import Measurement
from nbllm.core.report.sections import Chart, Event, KeyValues, Sample, Samples, Section, Table, Text
from nbllm.core.report.values import Cell
from nbllm.nn.compiled import parameters_by_name
from nbllm.runs.actions import words
from nbllm.runs.patterns import frozen_after
from nbllm.runs.summary import NATS
from nbllm.training.freezing import ParameterNames

if TYPE_CHECKING:
    from nbllm.lm import LM
    from nbllm.runs.actions import Action
    from nbllm.runs.run import Run
    from nbllm.runs.summary import RunSummary

_SAMPLES = 6
_MARKED = frozenset({"set", "freeze", "unfreeze", "rewind", "pause", "stop"})


def run_sections(run: Run, lm: LM | None = None) -> list[Section]:
    """Return what a run started from, its course, curves, actions and samples.

    Args:
        run: The run.
        lm: The model that it trained, for the share of its parameters that was trained.
    """
    parts = [
        _origins(run, lm), _course(run), _curve(run), _learning_rate(run), _actions(run), _samples(run)
    ]  # fmt: skip
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
    parts = [summary.label, f"of {planned:,} planned" if planned else ""]
    return ", ".join(part for part in parts if part)


def _course(run: Run) -> Text:
    """Return a summary of the run in sentences."""
    summary, timeline = run.summary, run.timeline
    planned = f" of {summary.steps:,} planned" if summary.steps and summary.steps != summary.step else ""
    sentences = [f"The run {run.name} took {counted(summary.step, 'steps')}{planned} and is {summary.label}."]
    if summary.reason and summary.label not in ("finished", "replayed"):
        sentences.append(f"The reason given: {summary.reason.rstrip('.')}.")
    tokens, seconds = summary.tokens, summary.seconds
    if tokens and seconds:
        sentences.append(
            f"It saw {int(tokens):,} tokens in {duration(seconds)} of training, "
            f"{tokens / seconds:,.0f} tokens a second."
        )
    if summary.parent:
        sentences.append(f"It is a fork of {_parent(summary)}.")
    if summary.replay_of:
        sentences.append(f"It is a replay of {summary.replay_of}.")
    if len(timeline.starts) > 1:
        again = [f"{start['step']:,}" for start in timeline.starts[1:]]
        sentences.append(f"It was interrupted, and resumed at step {', '.join(again)}.")
    if timeline.num_warnings:
        newest = str(timeline.warnings[-1].get("text", "")).rstrip(".")
        sentences.append(f"Warnings: {timeline.num_warnings}; the newest: {newest}.")
    return Text(title="How it was trained", text=" ".join(sentences))


def _origins(run: Run, lm: LM | None) -> KeyValues | None:
    """Return what the run started from: texts, base model, trained share, parent; `None` where nothing is recorded."""
    data, base, summary = run.record.get("data"), run.record.get("base"), run.summary
    entries: list[tuple[str, Cell]] = []
    if isinstance(data, Mapping):
        for part, label in (("train", "training text"), ("validation", "held-out text")):
            if isinstance(data.get(part), Mapping):
                entries += _text(label, data[part])
    if isinstance(base, str):
        entries.append(("base model", base or "none: the weights were new"))
    if lm is not None and (share := _trained_share(run, lm)):
        entries.append(("trained", share))
    if summary.parent:
        entries.append(("fork of", _parent(summary)))
    return KeyValues(title="What it was trained on", entries=tuple(entries)) if entries else None


def _text(label: str, facts: Mapping[str, Any]) -> Iterator[tuple[str, Cell]]:
    """Yield where a text of the run comes from, how much it is, and its fingerprint."""
    if facts.get("source"):
        yield label, str(facts["source"]).removesuffix(".")  # a sentence there, a name here
    counts = [
        counted(facts[name], unit)
        for name, unit in (("num_documents", "documents"), ("num_tokens", "tokens"), ("num_bytes", "bytes"))
        if isinstance(facts.get(name), int)
    ]
    if counts:
        yield f"{label}, size", ", ".join(counts)
    if facts.get("fingerprint"):
        yield f"{label}, fingerprint", str(facts["fingerprint"])


def _trained_share(run: Run, lm: LM) -> str:
    """Return how many parameters were trained at the end; "" where the run does not say."""
    if "freeze" not in run.config:
        return ""
    patterns = frozen_after(run.config["freeze"], run.timeline.effective)
    sizes = {name: parameter.numel() for name, parameter in parameters_by_name(lm.model).items()}
    frozen = ParameterNames(sizes, lm.config).frozen(patterns)
    total = sum(sizes.values())
    trained = total - sum(sizes[name] for name in frozen)
    if trained == total:
        return f"all {total:,} parameters"
    return f"{trained:,} of {total:,} parameters ({trained / total:.1%}); frozen: {', '.join(patterns)}"


def _parent(summary: RunSummary) -> str:
    at = "?" if summary.parent_step is None else summary.parent_step
    return f"{summary.parent} at step {at}"


def _curve(run: Run) -> Chart | None:
    lines = [
        curve_line("training", *run.history("loss")),
        curve_line("held-out", *run.history("evaluation.loss")),
    ]
    lines = [line for line in lines if line.x]
    if not lines:
        return None
    applied = [a for a in run.timeline.actions if a.outcome == "applied" and a.action in _MARKED]
    return Chart(
        x_label="step",
        y_label="loss (nats per token)" if run.summary.loss_unit == NATS else "loss",
        lines=tuple(lines),
        events=tuple(Event(x=action.step, label=words(action.action, action.args)) for action in applied),
        caption="Training and held-out loss; dashed lines mark what was done while the run went on.",
    )


def _learning_rate(run: Run) -> Chart | None:
    if "lr" not in run.timeline.metrics:
        return None
    line = curve_line("learning rate", *run.history("lr"))
    return Chart(
        x_label="step",
        y_label="learning rate",
        lines=(line,),
        caption="The learning rate as it was.",
        minor=True,
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
            label=_sample_label(event, superseded=_superseded(run, event)),
        )
        for event in chosen
    )
    return Samples(
        title="Samples",
        note=f"{len(shown)} of {len(events)}, spread over the run: first to last.",
        samples=shown,
    )


def _sample_label(event: Mapping[str, Any], *, superseded: bool) -> str:
    """Return "step 120, asked by person"; for samples that the loop takes at intervals, only the step."""
    actor = event.get("actor", "loop")
    asked = "" if actor == "loop" else f", asked by {actor}"
    return f"step {event['step']:,}{asked}{', superseded by a rewind' * superseded}"


def _superseded(run: Run, event: Mapping[str, Any]) -> bool:
    """Say whether the run went back to before a sample after it was taken, by a rewind or to resume."""
    timeline = run.timeline
    returns: list[tuple[Any, Any]] = [
        (action.time, action.args.get("to")) for action in timeline.actions if _is_rewind(action)
    ]
    returns += [(start.get("time"), start.get("from_step", start["step"])) for start in timeline.starts]
    taken = event.get("time", 0.0)
    return any(
        isinstance(time, (int, float)) and isinstance(step, int) and time > taken and step < event["step"]
        for time, step in returns
    )


def _is_rewind(action: Action) -> bool:
    return action.action == "rewind" and action.outcome == "applied"


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
