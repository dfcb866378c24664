"""What a notebook has registered (objectives, optimizers, schedules, rewards, ...), on its way to a process of its own.

A process that trains is a fresh interpreter: it knows what can be imported, and not what a cell has declared. That
goes to it by cloudpickle through its standard input, from the kernel that starts it. It is never written into a run's
folder, since whoever loads a pickle runs what is in it, and a run's folder may come from anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import cloudpickle

from nbllm.core.errors import UserError
from nbllm.core.registry import adopt, entries_from_outside

if TYPE_CHECKING:
    from nbllm.training.config import TrainConfig


def kernel_code(config: TrainConfig) -> bytes:
    """Return what is registered here beyond nbllm, pickled; b"" where there is nothing.

    What this run does not name, and cannot be pickled, is left out.

    Raises:
        UserError: What the run names cannot be pickled.
    """
    needed = _needed(config)
    kept: dict[str, dict[str, Any]] = {}
    for kind, entries in entries_from_outside().items():
        for name, entry in entries.items():
            try:
                cloudpickle.dumps(entry)
            except Exception as error:
                if (kind, name) in needed:
                    raise UserError(
                        f"The {kind} {name!r} is declared in {entry.__module__} and cannot be sent to another process: "
                        f"{type(error).__name__}: {error}",
                        hint='Let it use nothing that exists in this kernel alone, or train here: where="thread".',
                    ) from error
            else:
                kept.setdefault(kind, {})[name] = entry
    return cloudpickle.dumps(kept) if kept else b""


def check_travels(config: TrainConfig, place: Mapping[str, Any]) -> None:
    """Check that what a run names is known where it executes.

    Args:
        config: The run's settings.
        place: Where it executes, as its record says it.

    Raises:
        UserError: It is declared here, and cannot be sent there.
    """
    if place["slurm"] is not None:
        outside = entries_from_outside()
        for kind, name in _needed(config):
            if name in outside.get(kind, ()):
                raise UserError(
                    f"The {kind} {name!r} is declared in {outside[kind][name].__module__}, which a job of a cluster "
                    "does not know.",
                    hint="Train on this machine: where=nb.Launch(...).",
                )
    elif place["where"] == "process":
        kernel_code(config)


def _needed(config: TrainConfig) -> list[tuple[str, str]]:
    return [("objective", config.objective), ("optimizer", config.optimizer), ("schedule", config.schedule)]


def register(code: bytes) -> None:
    """Register what `kernel_code` returned in the kernel that started this process."""
    if code:
        adopt(cloudpickle.loads(code))
