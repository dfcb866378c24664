"""A fork: a new run that begins at a checkpoint of another, with changed settings."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nbllm.core.errors import RunError, UserError
from nbllm.distributed.plan import Plan
from nbllm.models.config import ModelConfig
from nbllm.models.peft.checkpoint import read_tensors
from nbllm.opening import load_tokenizer
from nbllm.runs import checkpoint as checkpoints
from nbllm.runs.checkpoint import CheckpointInfo
from nbllm.runs.rulebook import recorded_rules
from nbllm.runs.rules import Rule
from nbllm.runs.store import create, read_record
from nbllm.runs.timeline import Timeline, read_timeline
from nbllm.training.arguments import our_names
from nbllm.training.config import TrainConfig
from nbllm.training.kernel_code import check_travels
from nbllm.training.place import plan_at, processes_of_a_machine, recorded_place
from nbllm.training.requirements import check_fits
from nbllm.training.run_choices import DECISIVE, make_choices
from nbllm.training.run_record import check_record
from nbllm.training.train_state import TrainState
from nbllm.training.validation import limits, open_store

ITS_OWN = ("created", "host", "parent", "replay")  # what a run's record does not inherit


def fork(
    path: Path,
    name: str,
    *,
    step: int | None,
    changes: Mapping[str, Any],
    actor: str,
    where: dict[str, Any] | None,
    plan: Plan | None = None,
) -> Path:
    """Create a run beside `path` that goes on from one of its checkpoints.

    Args:
        path: The parent's directory.
        name: The new run's name.
        step: The checkpoint's step; `None` is the newest.
        changes: Settings of `TrainConfig` that differ from the parent's at that step; its present rules are taken over,
            and start counting from zero.
        actor: Who forks.
        where: Where the fork executes, as a record says it: `where` and `launch`; `None` is where the parent did.
        plan: How the model lies over the processes of the fork; `None` is as the parent's.

    Raises:
        RunError: There is no good checkpoint of that step on the run's current branch; the message names the others.
        UserError: A setting is unknown or out of range, or the run would have no step left.
    """
    changes = our_names(changes)
    while True:
        record = read_record(path)
        check_record(path, record)
        timeline = read_timeline(path, recorded_rules(record))
        info = _branching_point(path, timeline, step)
        try:
            new, config = _forked_record(path, record, timeline, info, changes)
            new |= _placed(new, config, where, plan)
            check_travels(config, recorded_place(new))
            new["parent"] = {"run": path.name, "step": info.step, "actor": actor}
            created = create(path.parent, name, new)
            with first_checkpoint(created):
                checkpoints.adopt(info, created, values=config.values, frozen=config.freeze, bad_steps=0)
        except (UserError, OSError):
            if info.path.exists():
                raise
            continue  # the parent goes on, and deleted this checkpoint for a newer one: take what there is now
        say_if_renamed(name, created)
        return created


def _forked_record(
    path: Path,
    record: Mapping[str, Any],
    timeline: Timeline,
    info: CheckpointInfo,
    changes: Mapping[str, Any],
) -> tuple[dict[str, Any], TrainConfig]:
    """Return the record and the configuration of a fork; errors as `fork`."""
    if changes.get("optimizer", record["config"]["optimizer"]) != record["config"]["optimizer"]:
        raise UserError(
            f"A fork takes over its parent's optimizer state, so it keeps {record['config']['optimizer']!r}.",
            where=path,
            hint="nb.train(nb.load(path), data, optimizer=...) begins with a fresh one.",
        )
    state = TrainState.read(info.path)
    config = TrainConfig.from_dict(
        {
            **record["config"],
            **state.values,
            "freeze": state.frozen,
            "rules": _standing_rules(timeline),
            **changes,
        }
    )
    if config.steps <= info.step:
        raise UserError(
            f"The fork would end at step {config.steps}, but it begins at {info.step}.",
            where=path,
            hint=f"Fork from an earlier step, or with more: steps={info.step + 100}.",
        )
    shape, data = ModelConfig.from_dict(record["model"]), record["data"]
    held_out = None if data["validation"] is None else open_store(data["validation"])
    check_fits(
        config, shape, load_tokenizer(info.path), open_store(data["train"]), held_out,
        adapter=read_tensors(info.path),
    )  # fmt: skip
    new = inherited(
        record,
        config=config.to_dict(),
        cannot=limits(data["validation"]),  # a replay cannot be steered, a fork of it can
    )
    if DECISIVE & changes.keys():
        new |= make_choices(config, shape, processes=processes_of_a_machine(record))
    return new, config


def _placed(
    record: Mapping[str, Any], config: TrainConfig, where: dict[str, Any] | None, plan: Plan | None
) -> dict[str, Any]:
    """Return the entries of a fork's record that say where it executes, and what follows from that."""
    place = where or recorded_place(record)
    new = {**place, "plan": plan_at(record, place, plan).to_dict()}
    processes = processes_of_a_machine(place)
    if processes != processes_of_a_machine(record):
        new |= make_choices(config, ModelConfig.from_dict(record["model"]), processes=processes)
    return new


def new_record(**fields: Any) -> dict[str, Any]:
    """Return the record of a run that is made from no other: `fields`, and on what it was made."""
    from nbllm.core.machine import machine_facts, versions

    return {**fields, "parent": None, "replay": None, "machine": machine_facts(), "versions": versions()}


def inherited(record: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Return what a run made from another one takes over of its record."""
    return {key: value for key, value in record.items() if key not in ITS_OWN} | {
        "parent": None,
        "replay": None,
        **changes,
    }


def say_if_renamed(name: str | None, path: Path) -> None:
    """Tell the person that the name was taken, and what the run is called instead."""
    if name is not None and path.name != name:
        sys.stdout.write(f"There is a run {name!r} already; this one is {path.name!r}.\n")


@contextlib.contextmanager
def first_checkpoint(path: Path) -> Iterator[None]:
    """While the first checkpoint of a new run is written: if that fails, the run's folder goes with it.

    Raises:
        RunError: The disk did not take it.
    """
    try:
        yield
    except BaseException as error:
        shutil.rmtree(path, ignore_errors=True)
        if isinstance(error, OSError):
            raise RunError(
                f"The first checkpoint could not be written: {error.strerror or error}.",
                where=path,
                hint="Free some disk space, or choose another folder.",
            ) from error
        raise


def _standing_rules(timeline: Timeline) -> list[Rule]:
    """Return the rules that a run has now, but for those that somebody switched off."""
    return [state.rule for state in timeline.rules if state.on or state.left <= 0]


def _branching_point(path: Path, timeline: Timeline, step: int | None) -> CheckpointInfo:
    on_branch = timeline.on_branch
    info, problems = checkpoints.newest_good(path, lambda c: on_branch(c) and step in (None, c.step))
    if info is None:
        there = sorted({c.step for c in checkpoints.checkpoints(path) if on_branch(c)})
        raise RunError(
            "; ".join(problems) or f"There is no checkpoint at step {step} to fork from.",
            where=path,
            hint=f"There are: {', '.join(map(str, there)) or 'none'}.",
        )
    return info
