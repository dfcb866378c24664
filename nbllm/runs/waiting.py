"""Waiting for a run, with a line that says how far it is."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING

import numpy as np

from nbllm.core.errors import RunError
from nbllm.core.quantities import duration
from nbllm.runs.state import LIVE

if TYPE_CHECKING:
    from nbllm.runs.run import Run

PERIOD = 0.1  # seconds between looks
LINE_PERIOD = 0.5  # seconds between lines
WIDTH = 100
MIN_STEPS = 5  # for an estimate of the time left
SEEN_STEPS = 200


def wait_for(run: Run, step: int | None, timeout: float | None, progress: bool) -> None:
    """Block until the run ends, has done `step` steps, or `timeout` seconds are over.

    Raises:
        RunError: It failed or was lost.
    """
    line = _Line(progress)
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        while True:
            state = run.state
            if state not in LIVE or (step is not None and run.step >= step):
                break
            if deadline is not None and time.monotonic() >= deadline:
                break
            line.show(run, state)
            time.sleep(PERIOD)
        line.show(run, run.state, last=True)
    except KeyboardInterrupt:
        line.end()
        where = f"nb.attach({str(run.path)!r})"
        sys.stdout.write(
            f"Stopped waiting; {run.name} goes on. {where} opens it from anywhere; run.stop() ends it.\n"
        )
        return
    finally:
        line.end()
    if state == "failed":
        raise RunError(
            f"{run.name} failed at step {run.step}: {run.reason or 'no reason was recorded'}.",
            where=run.path,
            hint="run.events('warning') may say more; run.resume() goes on from its newest good checkpoint.",
        )
    if state == "lost":
        raise RunError(
            f"{run.name} was lost at step {run.step}: its trainer is gone (killed, or out of memory).",
            where=run.path,
            hint="run.resume() goes on from its newest good checkpoint.",
        )


class _Line:
    """One line, rewritten in place."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self.open = False
        self.next = 0.0
        self.text = ""

    def show(self, run: Run, state: str, last: bool = False) -> None:
        if not self.wanted or (time.monotonic() < self.next and not last):
            return
        self.next = time.monotonic() + LINE_PERIOD
        text = progress_text(run, state)[:WIDTH]
        if text != self.text:
            sys.stdout.write(f"\r{text:<{len(self.text)}}")
            sys.stdout.flush()
            self.text, self.open = text, True

    def end(self) -> None:
        if self.open:
            sys.stdout.write("\n")
            sys.stdout.flush()
            self.open = False


def progress_text(run: Run, state: str) -> str:
    """Return "tour: step 120 of 600, loss 3.214, 4,100 tokens/s, about 3 min left"."""
    timeline = run.timeline
    parts = [f"step {timeline.step:,}" + (f" of {run.steps:,}" if run.steps else "")]
    if state != "running":
        parts.insert(0, state)
    if timeline.session.loss is not None:
        parts.append(f"loss {timeline.session.loss:.3f}")
    evaluated = run.history("evaluation.bits_per_byte")[1]
    if len(evaluated):
        parts.append(f"held-out {evaluated[-1]:.3f} bits/byte")
    if "tokens_per_second" in timeline.steps.columns and timeline.steps.steps:
        rate = timeline.steps.columns["tokens_per_second"][-1]
        if rate == rate:  # not NaN
            parts.append(f"{rate:,.0f} tokens/s")
    left = seconds_left(run)
    if state == "running" and left is not None:
        parts.append(f"about {duration(left)} left")
    return f"{run.name}: {', '.join(parts)}"


def seconds_left(run: Run) -> float | None:
    """Estimate the seconds to the end, measurements and checkpoints included; `None` when there is too little to see.

    Goes by the clock over the newest steps, with pauses cut down to size and a clock that went back left out.
    """
    points = run.timeline.steps
    moments = points.columns.get("time")
    if run.steps is None or moments is None or len(points.steps) < MIN_STEPS:
        return None
    recent = np.array(moments[-1 - SEEN_STEPS :])
    took = np.maximum(np.diff(recent), 0.0)
    took = np.minimum(took, 20 * np.median(took))
    per_step = float(took.sum()) / (points.steps[-1] - points.steps[-len(recent)])
    return max(0, run.steps - run.step) * per_step if math.isfinite(per_step) and per_step > 0 else None
