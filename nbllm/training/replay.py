"""Repeat a steered run, and see whether it reaches the same weights bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from nbllm.core.errors import RunError
from nbllm.runs import checkpoint as checkpoints
from nbllm.runs.actions import scripted_actions
from nbllm.runs.checkpoint import CheckpointInfo
from nbllm.runs.locating import locate
from nbllm.runs.run import Run
from nbllm.runs.store import create, read_record
from nbllm.runs.summary import REPLAY_OVER
from nbllm.runs.timeline import Timeline, read_timeline
from nbllm.training.decider import REPLAYED
from nbllm.training.digests import state_digest
from nbllm.training.fork import first_checkpoint, inherited
from nbllm.training.launcher import Launcher
from nbllm.training.run_record import check_record


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
    """Train a run again from its first checkpoint, taking every action on its current branch at the same step.

    The replay is a run of its own beside the original, and executes where that one did. What a rewind undid is not
    repeated: the weights do not depend on it. What rules did is repeated like all else; the replay itself has none.

    Args:
        run: The run, its name in `runs/`, or its folder; it must have ended.
        progress: Print a line of progress.

    Raises:
        RunError: The run is still going, has no second checkpoint to compare with, or was trained by a loop of
            the user's own, which cannot be repeated; or the wait was interrupted, and the replay goes on.
    """
    original = run if isinstance(run, Run) else Run(locate(run))
    if original.is_live:
        raise RunError(
            f"The run {original.name!r} is still going.",
            where=original.path,
            hint="Stop it first: run.stop().",
        )
    if "replay" in original.cannot:
        raise RunError(
            f"{original.name} cannot be replayed: {original.cannot['replay']}.", where=original.path
        )
    path, record = original.path, read_record(original.path)
    check_record(path, record)
    timeline = read_timeline(path)
    first, last = _ends(path, timeline)
    script: list[dict[str, Any]] = [
        {"step": a.step, "action": a.action, "args": a.args, "actor": a.actor}
        for a in timeline.pending_after(first.num_actions, first.step)
        if a.step < last.step
    ]
    end = {
        "step": last.step,
        "action": "stop",
        "args": {"reason": REPLAY_OVER},
        "actor": "rule:replay",
    }
    new = inherited(
        record,
        replay={"of": original.name, "script": [*script, end]},
        cannot={**original.cannot, **dict.fromkeys(scripted_actions(), REPLAYED)},
    )
    created = create(path.parent, f"{original.name}-replay", new)
    with first_checkpoint(created):
        checkpoints.adopt(first, created)
    repeated = Launcher().start(created)
    repeated.wait(progress=progress)
    again, _ = checkpoints.newest_good(created)
    if repeated.is_live or again is None or again.step != last.step:
        raise RunError(
            f"The replay has not reached step {last.step}, where the weights are compared; it is {repeated.state}.",
            where=created,
            hint="Let it end and compare the `digest` of both runs' last `end` event, or replay again.",
        )
    identical = state_digest(again.path) == state_digest(last.path)
    return Replay(original, repeated, last.step, len(script), identical)


def _ends(path: Path, timeline: Timeline) -> tuple[CheckpointInfo, CheckpointInfo]:
    """Return the first and the newest good checkpoint on the current branch."""
    on_branch = [c for c in checkpoints.checkpoints(path) if timeline.on_branch(c)]
    last, problems = checkpoints.newest_good(path, timeline.on_branch)
    if last is None or last.step == min(c.step for c in on_branch):
        raise RunError(
            f"The run {path.name!r} has no second good checkpoint, so there is nothing to compare.",
            where=path,
            hint="; ".join(problems) or None,
        )
    return min(on_branch, key=lambda c: (c.step, c.sequence)), last
