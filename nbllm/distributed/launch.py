"""On how many processes a run executes: a value that a run's record holds."""

from __future__ import annotations

import dataclasses

from nbllm.core.config import PlainConfig, check_positive
from nbllm.core.errors import UserError

MAX_PROCESSES = 1 << 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch(PlainConfig):
    """Train on several processes of this machine: `nb.train(lm, data, where=nb.Launch(processes=2))`.

    The processes outlive the kernel, as that of `where="process"` does. On CUDA each has a device of its own.

    Args:
        processes: How many; each is a rank of the run.
        restarts: How often all of them are started again, from the newest good checkpoint, after one was killed or
            its connection was lost. An error of the program ends the run at once: it would happen again.

    Raises:
        UserError: A number is out of range.
    """

    processes: int = 2
    restarts: int = 3

    def __post_init__(self) -> None:
        check_positive(self, "processes")
        if self.processes > MAX_PROCESSES:
            raise UserError(
                f"processes must be at most {MAX_PROCESSES:,}, not {self.processes:,}.", where="Launch"
            )
        if self.restarts < 0:
            raise UserError(f"restarts must not be negative, but is {self.restarts}.", where="Launch")
