"""Where a run executes, as its record says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nbllm.core.errors import UserError
from nbllm.distributed.launch import Launch
from nbllm.distributed.plan import Plan
from nbllm.distributed.slurm import SlurmJob, check_slurm
from nbllm.models.config import ModelConfig
from nbllm.training.config import TrainConfig

PLACES = ("thread", "process")


def placed(where: str | Launch | SlurmJob) -> dict[str, Any]:
    """Return where a run executes as its record says it.

    Returns:
        `where`; `launch`, which is None for a single process; and `slurm`, the job, or None.

    Raises:
        UserError: It is no such place, or cannot be started from here.
    """
    if isinstance(where, SlurmJob):
        check_slurm()
        return {"where": "process", "launch": where.launch.to_dict(), "slurm": where.to_dict()}
    if isinstance(where, Launch):
        return {"where": "process", "launch": where.to_dict(), "slurm": None}
    if where not in PLACES:
        raise UserError(f"where is {where!r}; it must be 'thread', 'process' or nb.Launch(...).")
    return {"where": where, "launch": None, "slurm": None}


def recorded_place(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `placed` returned when the run was made."""
    return {name: record.get(name) for name in ("where", "launch", "slurm")}


def plan_at(record: Mapping[str, Any], place: Mapping[str, Any], plan: Plan | None) -> Plan:
    """Return by which plan a run goes on at a place, once it is known that it can.

    Args:
        record: The run's.
        place: Where it goes on, as `placed` returns it.
        plan: What was asked for; None: the run's own. On another number of processes it has more or fewer data ranks,
            and on a single one nothing of what divides a model.

    Raises:
        UserError: It needs another number of processes, or this model cannot be trained so.
    """
    processes = processes_of(place)
    if plan is None:
        plan = Plan.from_dict(record.get("plan") or {})
        if processes != processes_of(record):
            plan = plan.replace(data=None, shard=None)
            if processes == 1:
                plan = plan.replace(zero=0, tensor=1, sequence=False, pipeline=1, context=1)
    sized = plan.sized(processes)
    sized.check(ModelConfig.from_dict(record["model"]), TrainConfig.from_dict(record["config"]))
    return plan


def processes_of(place: Mapping[str, Any]) -> int:
    """Return how many processes train a run, by what its record says of its place."""
    launch = place.get("launch")
    return 1 if launch is None else Launch.from_dict(launch).size


def processes_of_a_machine(place: Mapping[str, Any]) -> int:
    """Return how many of them share the cores of a machine."""
    launch = place.get("launch")
    return 1 if launch is None else Launch.from_dict(launch).processes
