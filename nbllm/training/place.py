"""Where a run executes, as its record says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nbllm.core.errors import UserError
from nbllm.distributed.launch import Launch

PLACES = ("thread", "process")


def placed(where: str | Launch) -> dict[str, Any]:
    """Return where a run executes as its record says it: `where`, and `launch`, which is None for a single process.

    Raises:
        UserError: It is no such place.
    """
    if isinstance(where, Launch):
        return {"where": "process", "launch": where.to_dict()}
    if where not in PLACES:
        raise UserError(f"where is {where!r}; it must be 'thread', 'process' or nb.Launch(...).")
    return {"where": where, "launch": None}


def processes_of(place: Mapping[str, Any]) -> int:
    """Return how many processes train a run, by what its record says of its place."""
    launch = place.get("launch")
    return 1 if launch is None else Launch.from_dict(launch).processes
