"""Repeat a steered run, and see whether it reaches the same weights bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nbllm.core.errors import RunError
from nbllm.runs import checkpoint as checkpoints
from nbllm.runs.events import EventReader
from nbllm.runs.run import Run
from nbllm.runs.store import create, read_record
from nbllm.runs.timeline import Timeline
from nbllm.training.launcher import Launcher
from nbllm.training.state import weights_digest


@dataclasses.dataclass(frozen=True)
class Replay:
    """What a replay found.

    Args:
        original: The run that was repeated.
        run: The run that repeated it.
        step: Where the weights of both were compared.
        num_actions: How many actions were taken again.
        identical: Whether weights and optimizer state agree bit for bit.
    """

    original: Run
    run: Run
    step: int
    num_actions: int
    identical: bool

    def __repr__(self) -> str:
        verdict = "bit-identical" if self.identical else "NOT identical"
        taken = f"{self.num_actions} actions taken again"
        return f"{self.run.name}: {verdict} to {self.original.name} at step {self.step} ({taken})"


def replay(run: Run | str | Path, *, progress: bool = True) -> Replay:
    """Train a run again from its first checkpoint, taking every action that is on its line at the same step.

    The replay is a run of its own beside the original, and executes where that one did. What a rewind undid is not
    repeated: the weights do not depend on it.

    Args:
        run: The run or its directory; it must have ended.
        progress: Print a line of progress.

    Raises:
        RunError: The run is still going, or has no second checkpoint to compare with.
    """
    original = run if isinstance(run, Run) else Run(Path(run))
    if original.state in ("starting", "running", "paused"):
        raise RunError(
            f"The run {original.name!r} is still going.",
            where=original.path,
            mend="Stop it first: run.stop().",
        )
    path, record = original.path, read_record(original.path)
    timeline = Timeline(EventReader(path).poll())
    last, _ = checkpoints.newest_good(path, timeline.on_line)
    saved = checkpoints.checkpoints(path)
    if last is None or last.step == saved[0].step:
        raise RunError(
            f"The run {original.name!r} has only its first checkpoint; there is nothing to compare.",
            where=path,
        )
    script = [
        {"step": a.step, "action": a.action, "args": a.args, "actor": a.actor}
        for a in timeline.effective
        if a.step < last.step
    ]
    script.append(
        {"step": last.step, "action": "stop", "args": {"reason": "the replay is over"}, "actor": "replay"}
    )
    new = {**record, "parent": None, "replay": {"of": record["name"], "script": script}}
    created = create(path.parent, f"{original.name}-replay", new)
    checkpoints.adopt(saved[0], created)
    repeated = Launcher().start(created)
    repeated.wait(progress=progress)
    again, _ = checkpoints.newest_good(created)
    identical = (
        again is not None
        and again.step == last.step
        and weights_digest(again.path) == weights_digest(last.path)
    )
    return Replay(original, repeated, last.step, len(script) - 1, identical)
