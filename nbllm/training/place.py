"""Where a run executes, as its record says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nbllm.core.errors import UserError
from nbllm.distributed.launch import Launch
from nbllm.distributed.slurm import SlurmJob, check_slurm

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


def processes_of(place: Mapping[str, Any]) -> int:
    """Return how many processes train a run, by what its record says of its place."""
    launch = place.get("launch")
    return 1 if launch is None else Launch.from_dict(launch).size


def processes_of_a_machine(place: Mapping[str, Any]) -> int:
    """Return how many of them share the cores of a machine."""
    launch = place.get("launch")
    return 1 if launch is None else Launch.from_dict(launch).processes
