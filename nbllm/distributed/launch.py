"""On how many processes a run executes: a value that a run's record holds."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from nbllm.core.config import PlainConfig, check_positive
from nbllm.core.errors import UserError

if TYPE_CHECKING:
    from nbllm.distributed.slurm import SlurmJob

MAX_PROCESSES = 1 << 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch(PlainConfig):
    """Train on several processes of this machine: `nb.train(lm, data, where=nb.Launch(processes=2))`.

    The processes outlive the kernel, as that of `where="process"` does. On CUDA each has a device of its own.

    Args:
        processes: How many on each machine; each is a rank of the run.
        nodes: On how many machines. More than one are started by torchrun (`nbllm launch --help`) or by Slurm
            (`nb.Launch.slurm`), not from here.
        restarts: How often all of them are started again, from the newest good checkpoint, after one was killed or
            its connection was lost. An error of the program ends the run at once: it would happen again.

    Raises:
        UserError: A number is out of range.
    """

    processes: int = 2
    nodes: int = 1
    restarts: int = 3

    def __post_init__(self) -> None:
        check_positive(self, "processes", "nodes")
        if self.size > MAX_PROCESSES:
            raise UserError(f"There can be {MAX_PROCESSES:,} ranks, not {self.size:,}.", where="Launch")
        if self.restarts < 0:
            raise UserError(f"restarts must not be negative, but is {self.restarts}.", where="Launch")

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return self.processes * self.nodes

    @staticmethod
    def slurm(**settings: Any) -> SlurmJob:
        """Return a job of a Slurm cluster; `settings` are those of `nbllm.distributed.slurm.SlurmJob`."""
        from nbllm.distributed.slurm import SlurmJob

        return SlurmJob.from_dict(settings)


def is_launched() -> bool:
    """Say whether the environment names this process a rank, as torchrun sets it."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch_of_environment() -> Launch:
    """Return the launch that torchrun has made this process a rank of."""
    processes = int(os.environ["LOCAL_WORLD_SIZE"])
    return Launch(processes=processes, nodes=max(1, int(os.environ["WORLD_SIZE"]) // processes))
