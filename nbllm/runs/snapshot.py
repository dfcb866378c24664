"""The static snapshot of a run: what a cell, nbconvert and GitHub show. It has no script."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from nbllm.core.chart import Mark, Series, line_chart
from nbllm.core.html import Raw, escape, fragment, table
from nbllm.core.quantities import duration, moment, number, size
from nbllm.runs.actions import Action, words
from nbllm.runs.liveness import LIVE
from nbllm.runs.rank_states import rank_states
from nbllm.runs.recorded import RecordedRun
from nbllm.runs.step_profile import newest_profile
from nbllm.runs.summary import RunSummary, seconds_left
from nbllm.runs.timeline import Timeline

MOST_ROWS = 12  # of actions and of checkpoints, the newest
MOST_TEXT = 2000  # characters of a sample
MOST_CELL = 160
MOST_LABEL = 28
MOST_MARKS = 24
MOST_WARNINGS = 3
MOST_RANKS = 64
MOST_BARS = 400  # of a profile, so that a saved notebook stays small

CSS = """
.nbllm .run-head { display: flex; flex-wrap: wrap; align-items: baseline; gap: .2em .8em;
  margin: .2em 0 .5em; }
.nbllm .run-name { font-size: 1.15em; font-weight: 600; overflow-wrap: anywhere; }
.nbllm .run-state { font-size: .85em; font-weight: 600; padding: .05em .7em; border: 1px solid currentColor;
  border-radius: 999px; white-space: nowrap; }
.nbllm .run-running, .nbllm .run-starting { color: var(--nbllm-series-1); }
.nbllm .run-paused, .nbllm .run-stopped { color: var(--nbllm-series-2); }
.nbllm .run-finished, .nbllm .run-replayed { color: var(--nbllm-good); }
.nbllm .run-failed, .nbllm .run-lost { color: var(--nbllm-bad); }
.nbllm .run-bar { height: 5px; border-radius: 3px; background: var(--nbllm-line); overflow: hidden;
  max-width: 720px; }
.nbllm .run-bar div { height: 100%; background: var(--nbllm-series-1); }
.nbllm .run-facts { display: flex; flex-wrap: wrap; gap: .3em 1.8em; margin: .7em 0; padding: 0; }
.nbllm .run-facts div { margin: 0; }
.nbllm .run-facts dt { color: var(--nbllm-muted); font-size: .8em; font-weight: 400; margin: 0; }
.nbllm .run-facts dd { margin: 0; font-variant-numeric: tabular-nums; }
.nbllm .run-note { border-left: 3px solid var(--nbllm-bad); padding: .1em 0 .1em .8em; margin: .6em 0;
  overflow-wrap: anywhere; }
.nbllm .run-foot { font-size: .85em; overflow-wrap: anywhere; }
.nbllm details { margin: .4em 0; }
.nbllm summary { cursor: pointer; font-weight: 600; }
.nbllm td { overflow-wrap: break-word; }
.nbllm .run-when { white-space: nowrap; }
"""


def html(run: RecordedRun) -> str:
    """Return a run as HTML: state, progress, curve, newest sample, actions, checkpoints."""
    with run.guard:
        summary, timeline = run.summary, run.timeline
        parts = [
            f"<style>{CSS}</style>",
            _head(summary),
            _facts(summary, seconds_left(timeline, summary.steps)),
            _notes(run, summary, timeline),
            _curve(timeline, summary.loss_unit),
            _ranks(timeline),
            _profile(run),
            _sample(timeline),
            _actions(timeline),
            _checkpoints(run, timeline),
            f'<p class="muted run-foot">{escape(run.path)} &middot; as of {moment(time.time())}'
            f"{'; show it again for a newer picture' if summary.state in LIVE else ''}</p>",
        ]
    return fragment("".join(parts))


def badge(state: str) -> Raw:
    """Return a state as a coloured word."""
    return Raw(f'<span class="run-state run-{escape(state)}">{escape(state)}</span>')


def _head(summary: RunSummary) -> str:
    bar = ""
    if summary.progress is not None:
        share = 100 * summary.progress
        bar = (
            f'<div class="run-bar" role="progressbar" aria-valuenow="{share:.0f}" aria-valuemin="0" '
            f'aria-valuemax="100"><div style="width:{share:.1f}%"></div></div>'
        )
    origin = (
        f"{'' if summary.replay_of else 'forked from '}{summary.parent_text}" if summary.parent_text else ""
    )
    forked = f' <span class="muted">{escape(origin)}</span>' if origin else ""
    return (
        f'<div class="run-head"><span class="run-name">{escape(summary.name)}</span> {badge(summary.label)} '
        f"<span>{summary.step_text}</span>{forked}</div>{bar}"
    )


def _facts(summary: RunSummary, left: float | None) -> str:
    shown: list[tuple[str, float | None, Callable[[float], str]]] = [
        ("training loss", summary.loss, lambda v: f"{v:.3f} {summary.loss_unit}".rstrip()),
        ("held-out loss", summary.held_out_loss, lambda v: f"{v:.3f} {summary.loss_unit}".rstrip()),
        ("held-out", summary.bits_per_byte, lambda v: f"{v:.3f} bits/byte"),
        ("learning rate", summary.lr, lambda v: number(v, 3)),
        ("tokens", summary.tokens, number),
        ("speed", summary.tokens_per_second, lambda v: f"{v:,.0f} tokens/s"),
        ("memory", summary.memory, size),
        ("trained for", summary.seconds, duration),
        ("left, about", left or None if summary.state == "running" else None, duration),
    ]
    facts = [(name, text(value)) for name, value, text in shown if value is not None and value >= 0]
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return f'<dl class="run-facts">{items}</dl>' if items else ""


def _notes(run: RecordedRun, summary: RunSummary, timeline: Timeline) -> str:
    notes = []
    if summary.state == "lost" and run.exists:
        notes.append("The trainer is gone. run.resume() goes on from the newest good checkpoint.")
    if summary.reason and summary.label not in ("finished", "replayed"):
        notes.append(summary.reason)
    hidden = timeline.num_warnings - min(MOST_WARNINGS, len(timeline.warnings))
    if hidden > 0:
        notes.append(f"{hidden:,} earlier warnings: run.events('warning').")
    notes += [
        f"Step {event['step']:,}: {event.get('text', '')}" for event in timeline.warnings[-MOST_WARNINGS:]
    ]
    notes += run.problems
    return "".join(f'<div class="run-note">{escape(_short(note, 600))}</div>' for note in notes)


def curve_series(timeline: Timeline, prefix: str = "") -> list[Series]:
    """Return training and held-out loss as chart series; what has no points is left out."""
    series = []
    for metric, name in (("loss", "training"), ("evaluation.loss", "held-out")):
        steps, values = timeline.history(metric)
        if len(steps):
            series.append(Series(f"{prefix}{name}", steps.tolist(), values.tolist()))
    return series


def _curve(timeline: Timeline, unit: str) -> str:
    series = curve_series(timeline)
    if not series:
        return '<p class="muted">No step has been taken yet.</p>'
    marks = [
        Mark(action.step, _short(words(action.action, action.args), MOST_LABEL))
        for action in timeline.effective[-MOST_MARKS:]
        if action.step <= timeline.step
    ]
    return line_chart(series, x_label="step", y_label=f"loss, {unit}" if unit else "loss", marks=marks)


def _ranks(timeline: Timeline) -> str:
    """Return the processes that train the run, where there are several."""
    states = rank_states(timeline.ranks)
    if not states or timeline.ranks is None:
        return ""
    rows = [
        (
            state.rank,
            _known(state.memory, size),
            _known(state.seconds, duration),
            _percent(state.computing, state.seconds),
            "the others wait for it" if state.is_slow else "",
        )
        for state in states[:MOST_RANKS]
    ]
    more = f"; the first {MOST_RANKS}" if len(states) > MOST_RANKS else ""
    header = ("rank", "memory", "step", "computing", "")
    title = f"{len(states):,} ranks, step {timeline.ranks['step']:,}{more}"
    return f"<details><summary>{title}</summary>{table(rows, header)}</details>"


def _profile(run: RecordedRun) -> str:
    """Return the newest profile of steps, where there is one."""
    found = newest_profile(run.path)
    if found is None or not found[0].ranks:
        return ""
    profile = found[0]
    return f"<details><summary>Profile: {profile.title}</summary>{profile.html(most=MOST_BARS)}</details>"


def _known(value: float, text: Callable[[float], str]) -> str:
    return text(value) if math.isfinite(value) else "\N{EN DASH}"


def _percent(part: float, whole: float) -> str:
    return _known(part / whole if whole > 0 else math.nan, lambda share: f"{100 * share:.0f} %")


def _sample(timeline: Timeline) -> str:
    if not timeline.samples:
        return ""
    event = timeline.samples[-1]
    prompt, text = (
        _short(str(event.get("prompt", "")), MOST_TEXT),
        _short(str(event.get("text", "")), MOST_TEXT),
    )
    actor = str(event.get("actor", ""))
    asked = (
        f", asked by {actor}" if actor.startswith(("person", "rule:", "agent:")) else ""
    )  # else by the loop itself
    return (
        f"<h3>Newest sample, step {event['step']:,}{escape(asked)}</h3>"
        f"<pre><b>{escape(prompt)}</b>{escape(text)}</pre>{_reference(event)}"
    )


def _reference(event: Mapping[str, Any]) -> str:
    """Return what the reference wrote to the same prompt, where the run has one."""
    if "reference" not in event:
        return ""
    text = _short(str(event["reference"]), MOST_TEXT)
    return f'<p class="muted">The reference:</p><pre>{escape(text)}</pre>'


def _actions(timeline: Timeline) -> str:
    if not timeline.actions:
        return ""
    shown = timeline.actions[-MOST_ROWS:]
    total = len(timeline.actions)
    title = "Actions" if total == len(shown) else f"Actions, the newest {len(shown)} of {total:,}"
    rows = [action_row(action) for action in reversed(shown)]
    return f"<h3>{title}</h3>{table(rows, ('step', 'action', 'by', 'outcome', 'when'))}"


def action_row(action: Action) -> tuple[object, ...]:
    """Return an action as table cells: step, what, by whom, outcome, when."""
    outcome = f"{action.outcome}: {action.reason}" if action.reason else action.outcome
    shown: object = _short(outcome, MOST_CELL)
    if action.outcome == "refused":
        shown = Raw(f'<span class="bad">{escape(shown)}</span>')
    what = _short(words(action.action, action.args), MOST_CELL)
    return (action.step, what, _short(action.actor, 60), shown, moment_text(action.time))


def _checkpoints(run: RecordedRun, timeline: Timeline) -> str:
    infos = run.checkpoints
    if not infos:
        return ""
    rows: list[tuple[Any, ...]] = []
    for info in reversed(infos[-MOST_ROWS:]):
        superseded = "" if timeline.on_branch(info) else "superseded by a rewind"
        rows.append((info.step, info.name, size(info.bytes), moment_text(info.time), superseded))
    total = sum(info.bytes for info in infos)
    title = f"{len(infos):,} checkpoint{'s' if len(infos) > 1 else ''}, {size(total)}"
    header = ("step", "folder", "size", "saved", "")
    return f"<details><summary>{title}</summary>{table(rows, header)}</details>"


def moment_text(seconds: float) -> Raw:
    """Return a moment as date and time, whatever number stands in the file."""
    return Raw(f'<span class="run-when">{escape(moment(seconds))}</span>')


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
