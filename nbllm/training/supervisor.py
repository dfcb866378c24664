"""`python -m nbllm.training.supervisor RUN LAUNCH`: the process that trains a run by several ranks of this machine.

It holds the run as long as its ranks train it, starts all of them again from the newest good checkpoint when one was
killed, and records the error of the rank that failed first. The ranks are started and watched by torch elastic. The
restarts are decided here, not by elastic, which cannot tell an error that would happen again from a lost process.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import psutil

from nbllm.core.errors import RunError
from nbllm.core.machine import usable_cores
from nbllm.distributed.launch import Launch
from nbllm.runs.events import EventWriter, event_files
from nbllm.runs.lock import HANDOVER_SECONDS, TrainerLock
from nbllm.runs.presence import Presence
from nbllm.runs.skim import newest_session
from nbllm.runs.store import read_record
from nbllm.training.failures import Failure, described, first_cause, read_failures
from nbllm.training.worker import CODE, ENDING, leave

LOOPBACK = "127.0.0.1"
LOOK_SECONDS = 0.1
DEAF_SECONDS = 4.0  # until ranks are killed of which rank 0 does not hear that it is to end


class Supervisor:
    """Trains a run by the ranks of a launch, to its end.

    Args:
        path: The run directory, which this process holds.
        launch: Its ranks.
        code: What the kernel has registered, for the ranks; see `nbllm.training.kernel_code`.
        options: More of the command line of the ranks.
    """

    def __init__(self, path: Path, launch: Launch, code: bytes = b"", options: Sequence[str] = ()) -> None:
        self.path = path
        self.options = options
        self.launch = launch
        self.code = code
        self.record = read_record(path)
        self.sessions = len(event_files(path))
        self.asked_at: float | None = None  # when a signal asked to end
        self.asked_twice = False
        self.problem = "the ranks have ended without a word"  # where none of them failed

    def run(self) -> None:
        """Train until the run has ended; its end is an event in any case."""
        for left in range(self.launch.restarts, -1, -1):
            with tempfile.TemporaryDirectory(prefix="nbllm-ranks-") as folder:  # nobody else may write there
                (Path(folder) / CODE).write_bytes(self.code)
                codes = self._train(Path(folder))
                cause = first_cause(read_failures(Path(folder), codes))
            if self._has_ended():
                return
            if self.asked_at is not None:
                reason = "the launch was interrupted before a last checkpoint was written"
                self._write("end", state="stopped", reason=reason, digest=None)
                return
            if cause is None or (cause.is_error and not cause.follows) or left == 0:
                self._fail(cause)
                return
            number = self.launch.restarts - left + 1
            text = (
                f"rank {cause.rank}: {cause.reason}; all ranks begin again from the newest checkpoint "
                f"(restart {number} of {self.launch.restarts})"
            )
            self._write("warning", text=text)

    @property
    def num_threads(self) -> int:
        """Threads of a rank: as recorded; with another launch than the run began with, its share of the cores."""
        recorded: int = self.record["choices"]["num_threads"]
        if self.record.get("launch") == self.launch.to_dict() or self.record["config"]["num_threads"]:
            return recorded
        return max(1, usable_cores() // self.launch.processes)

    def ask_to_end(self, number: int, frame: object) -> None:
        """Handle a signal: end at the next step, saved; by a second signal at once."""
        self.asked_twice = self.asked_at is not None
        self.asked_at = self.asked_at or time.monotonic()

    # -- one start of the ranks ---------------------------------------------------------------------------------

    def _train(self, folder: Path) -> dict[int, int]:
        """Start the ranks and wait until all have ended; return the exit codes of those that failed."""
        codes: dict[int, int] = {}
        # In a thread of its own: in the main thread elastic would put its own handlers of signals in place of ours.
        thread = threading.Thread(target=self._train_by_elastic, args=(folder, codes), name="torch elastic")
        thread.start()
        told = False
        while thread.is_alive():
            thread.join(LOOK_SECONDS)
            if self.asked_at is None:
                continue
            if not told:
                told = _tell_ranks_to_end()
            deaf = not (folder / ENDING).exists() and time.monotonic() - self.asked_at > DEAF_SECONDS
            if self.asked_twice or deaf:
                _kill_ranks()
        return codes

    def _train_by_elastic(self, folder: Path, codes: dict[int, int]) -> None:
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=self.launch.processes,
            run_id=self.path.name,
            rdzv_backend="c10d",
            rdzv_endpoint=f"{LOOPBACK}:0",  # a free port, which the system chooses when it is opened
            rdzv_configs={"is_host": True},
            local_addr=LOOPBACK,
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=str(folder)),  # files of its own, which go with the folder
        )
        arguments = ["-m", "nbllm.training.worker", str(self.path), "--supervised", str(folder)]
        arguments += ["--threads", str(self.num_threads), *self.options]
        try:
            elastic_launch(config, sys.executable)(*arguments)
        except ChildFailedError as error:
            codes.update({rank: failure.exitcode for rank, failure in error.failures.items()})
        except Exception as error:
            traceback.print_exc()
            self.problem = f"the ranks could not be started: {type(error).__name__}: {error}"

    # -- what is recorded ---------------------------------------------------------------------------------------

    def _has_ended(self) -> bool:
        """Say whether the ranks have recorded the end of the run themselves."""
        newest = newest_session(self.path, self.record)
        return newest.number > self.sessions and newest.end is not None

    def _fail(self, cause: Failure | None) -> None:
        what: dict[str, Any] = {"reason": self.problem}
        if cause is not None:
            what = described(cause)
            if not cause.is_error or cause.follows:
                what["reason"] += f"; after {self.launch.restarts} restarts it is not started again"
        self._write("end", step=cause.step if cause else None, state="failed", digest=None, **what)

    def _write(self, kind: str, *, step: int | None = None, **fields: Any) -> None:
        if Presence(self.path, self.record).is_gone():
            return  # writing would make the folder anew
        at = newest_session(self.path, self.record).step
        with contextlib.suppress(RunError), EventWriter(self.path, "trainer") as writer:
            writer.write(kind, max(at, step or 0), **fields)


def _tell_ranks_to_end() -> bool:
    """Interrupt all ranks, of which rank 0 listens; return whether there were any."""
    ranks = psutil.Process().children()
    for rank in ranks:
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.send_signal(signal.SIGINT)
    return bool(ranks)


def _kill_ranks() -> None:
    """Kill the ranks with all that they have started: elastic makes each the first of a group."""
    for rank in psutil.Process().children():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(rank.pid, signal.SIGKILL)


def _loopback_interface() -> str | None:
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == LOOPBACK for each in addresses):
            return str(name)
    return None


def main(arguments: list[str]) -> NoReturn:
    """Train the run that is named by the launch that is given as JSON; the ranks are given what follows."""
    path, launch = Path(arguments[0]), Launch.from_dict(json.loads(arguments[1]))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)  # what it says is recorded here
    with TrainerLock(path, HANDOVER_SECONDS):
        supervisor = Supervisor(path, launch, sys.stdin.buffer.read(), arguments[2:])
        for name in ("SIGTERM", "SIGINT", "SIGHUP"):
            if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
                signal.signal(getattr(signal, name), supervisor.ask_to_end)
        # The ranks find each other without a name server, and share the cores.
        if (interface := _loopback_interface()) is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = interface
        os.environ["OMP_NUM_THREADS"] = str(supervisor.num_threads)
        supervisor.run()
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1:])
