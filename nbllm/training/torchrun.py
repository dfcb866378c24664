"""Ranks that torchrun has started, on one machine or on several that share a disk.

torchrun starts all of them again when one has ended otherwise than well; they go on from the newest good checkpoint.
There is no supervisor here: rank 0 holds the run and records what happens to it.
"""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from nbllm.core.errors import RunError, UserError
from nbllm.core.io import expand_user
from nbllm.core.terminal import say
from nbllm.distributed.launch import launch_of_environment
from nbllm.distributed.process_group import joined_group
from nbllm.distributed.ranks import from_rank_zero
from nbllm.runs import rank_logs
from nbllm.runs.lock import HANDOVER_SECONDS, SILENCE
from nbllm.runs.store import RECORD, check_name
from nbllm.training.failures import described, first_cause, read_failures, report_failure
from nbllm.training.from_file import start_from_file
from nbllm.training.trainer import Trainer
from nbllm.training.worker import leave, print_to_log

CAUSE_SECONDS = 3.0  # until a rank that has failed must have said so


def launch_file(config: Path, *, name: str | None, folder: Path) -> None:
    """Train what a TOML file says as the rank that the environment names; rank 0 prepares the run.

    Args:
        config: The file; `nbllm train --help` shows one.
        name: The run's name; where there is such a run already, it goes on.
        folder: Where runs are kept, on a disk that all ranks share.

    Raises:
        UserError: There is no name, or the file makes no sense.
    """
    if name is None:
        raise UserError(
            "Under torchrun a run needs a name.",
            hint="Give it: --name big. The same name goes on with that run.",
        )
    path = expand_user(folder) / check_name(name)

    def find() -> Path:
        if (path / RECORD).exists():
            return path
        return start_from_file(config, name=name, folder=folder, where=launch_of_environment()).path

    train_as_rank(find)


def train_as_rank(find: Callable[[], Path]) -> None:
    """Train a run as one of its ranks; what fails ends this process whatever else it is doing.

    Args:
        find: Returns the run's folder; called on rank 0 alone.
    """
    with joined_group() as ranks:

        def found() -> str:
            path = find().resolve()
            for old in (path / rank_logs.FOLDER).glob("rank-*.json"):
                old.unlink()
            return str(path)

        path = Path(from_rank_zero(ranks, found))
        if ranks.rank == 0:
            say(f"{path}: {ranks.size} ranks; what they print is in its folder {rank_logs.FOLDER}/")
        print_to_log(path, ranks.rank)
        trainer = RankTrainer(path, where="process", ranks=ranks)
        _end_by_signals(trainer)
        _claim(trainer)
        try:
            trainer.run()
        except BaseException:
            traceback.print_exc()
            leave(1)


class RankTrainer(Trainer):
    """A rank without a supervisor: each says what ended it, and rank 0 records the error that was the first."""

    def fail(self, error: BaseException) -> None:
        """Record that an error ended the run."""
        folder = self.path / rank_logs.FOLDER
        report_failure(folder, self.ranks.rank, error, self.reached)
        if self.ranks.rank > 0:
            return
        deadline = time.monotonic() + CAUSE_SECONDS
        while True:
            cause = first_cause(read_failures(folder, {}))
            if time.monotonic() >= deadline or (cause is not None and not cause.follows):
                break
            time.sleep(0.05)
        if cause is None:  # the disk did not take the reports
            super().fail(error)
        else:
            self.emit("end", step=self.reached, state="failed", digest=None, **described(cause))


def _end_by_signals(trainer: Trainer) -> None:
    """Let rank 0 end the run at the next step, saved; the others end with it."""

    def end(number: int, frame: object) -> None:
        trainer.exit_reason = f"signal {signal.Signals(number).name}"

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end if trainer.ranks.rank == 0 else signal.SIG_IGN)


def _claim(trainer: Trainer) -> None:
    """Hold the run; wait while it seems to be held by the rank 0 of before a restart, perhaps on another machine."""
    deadline = time.monotonic() + SILENCE + HANDOVER_SECONDS
    while True:
        try:
            trainer.claim(HANDOVER_SECONDS)
        except RunError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(1)
        else:
            return
