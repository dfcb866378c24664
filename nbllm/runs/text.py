"""A run in plain text, for the terminal: what the static snapshot shows in a cell."""

from __future__ import annotations

from nbllm.core.quantities import moment, size
from nbllm.core.terminal import visible
from nbllm.runs.actions import words
from nbllm.runs.recorded import RecordedRun
from nbllm.runs.summary import seconds_left
from nbllm.runs.waiting import progress_text

NEWEST = 10  # actions, warnings and checkpoints shown


def details(run: RecordedRun) -> str:
    """Return state, progress, newest sample, actions, warnings and checkpoints of a run, a line each.

    Control characters in samples, prompts and names are made visible, since a terminal would act on them.
    """
    summary, timeline = run.summary, run.timeline
    progress = progress_text(summary, seconds_left(timeline, summary.steps))
    lines = [progress, f"  folder   {run.path}"]
    if summary.reason:
        lines.append(f"  reason   {summary.reason}")
    if summary.parent:
        lines.append(f"  parent   {summary.parent_text}")
    if timeline.samples:
        sample = timeline.samples[-1]
        text = f"{sample.get('prompt', '')}{sample.get('text', '')}"
        lines.append(f"  sample   step {sample['step']:,}: {text!r}")
    for action in timeline.actions[-NEWEST:]:
        said = f": {action.reason}" if action.reason else ""
        done = f"{words(action.action, action.args)} {action.outcome} ({action.actor})"
        lines.append(f"  action   step {action.step:,}: {done}{said}")
    lines += [f"  warning  step {w['step']:,}: {w.get('text', '')}" for w in timeline.warnings[-NEWEST:]]
    lines += [
        f"  saved    step {c.step:,}: {c.name}, {size(c.bytes)}, {moment(c.time)}"
        for c in run.checkpoints[-NEWEST:]
    ]
    return "\n".join(visible(line) for line in lines)
