"""Waiting for a run, with a progress line."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from nbllm.core.errors import RunError
from nbllm.core.progress import rewritable, status_line
from nbllm.core.quantities import duration
from nbllm.core.terminal import say
from nbllm.runs.liveness import LIVE
from nbllm.runs.recorded import RecordedRun
from nbllm.runs.summary import RunSummary, seconds_left

if TYPE_CHECKING:
    from tqdm.std import tqdm

PERIOD = 0.1  # seconds between looks
LINE_PERIOD = 0.5  # seconds between lines that are rewritten in place
LOG_PERIOD = 30  # seconds between lines of a file
WIDTH = 100


def wait_for(run: RecordedRun, step: int | None, timeout: float | None, progress: bool) -> None:
    """Block until the run ends, has done `step` steps, or `timeout` seconds are over; Ctrl-C leaves it going.

    Raises:
        RunError: It failed or was lost.
    """
    try:
        watch(run, step, timeout, progress)
    except KeyboardInterrupt:
        where = f"nb.attach({str(run.path)!r})"
        sys.stdout.write(
            f"Stopped waiting; {run.name} goes on. {where} opens it from anywhere; run.stop() ends it.\n"
        )
        return
    check_outcome(run)


def watch(run: RecordedRun, step: int | None, timeout: float | None, progress: bool) -> None:
    """As `wait_for`, but for Ctrl-C, which is an exception here, and for how the run ends."""
    line = _Line(progress)
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        while True:
            state = run.state
            if state not in LIVE or (step is not None and run.step >= step):
                break
            if deadline is not None and time.monotonic() >= deadline:
                break
            line.show(run)
            time.sleep(PERIOD)
        line.show(run, last=True)
    finally:
        line.end()


def check_outcome(run: RecordedRun) -> None:
    """Check that a run has not ended otherwise than by finishing or being stopped.

    Raises:
        RunError: It failed or was lost.
    """
    state = run.state
    if state == "failed":
        rank = run.failed_rank
        said = "run.events('warning')" if rank is None else f"run.log(rank={rank})"
        raise RunError(
            f"{run.name} failed at step {run.step}: {run.reason or 'no reason was recorded'}.",
            where=run.path,
            hint=f"{said} says more; run.resume() goes on from its newest good checkpoint.",
        )
    if state == "lost" and not run.exists:
        raise RunError(
            f"The folder of {run.name} is gone, at step {run.step} or after: it was deleted, renamed or moved.",
            where=run.path,
            hint="A run ends when its folder is gone.",
        )
    if state == "lost":
        raise RunError(
            f"{run.name} was lost at step {run.step}: its trainer is gone (killed, or out of memory).",
            where=run.path,
            hint="run.resume() goes on from its newest good checkpoint.",
        )


class _Line:
    """What a run does just now: more than a count, since a run pauses, fails and goes back to earlier steps."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted
        self.line: tqdm[None] | None = None
        self.next = 0.0
        self.rewritten = rewritable()

    def show(self, run: RecordedRun, last: bool = False) -> None:
        if not self.wanted or (time.monotonic() < self.next and not last):
            return
        self.next = time.monotonic() + (LINE_PERIOD if self.rewritten else LOG_PERIOD)
        with run.guard:
            summary = run.summary
            text = progress_text(summary, seconds_left(run.timeline, summary.steps))[:WIDTH]
        if not self.rewritten:
            say(text)
        elif self.line is None:
            self.line = status_line(text, leave=True)
        else:
            self.line.set_description_str(text)

    def end(self) -> None:
        if self.line is not None:
            self.line.close()
            self.line = None


def progress_text(summary: RunSummary, left: float | None) -> str:
    """Return "tour: step 120 of 600, loss 3.214, 4,100 tokens/s, about 3 min left".

    Args:
        summary: Where the run stands.
        left: Seconds to the end, if that can be estimated.
    """
    parts = [summary.step_text]
    if summary.state != "running":
        parts.insert(0, summary.label)
    if summary.loss is not None:
        parts.append(f"loss {summary.loss:.3f}")
    if summary.bits_per_byte is not None:
        parts.append(f"held-out {summary.bits_per_byte:.3f} bits/byte")
    if summary.tokens_per_second is not None:
        parts.append(f"{summary.tokens_per_second:,.0f} tokens/s")
    if summary.state == "running" and left is not None:
        parts.append(f"about {duration(left)} left")
    return f"{summary.name}: {', '.join(parts)}"
