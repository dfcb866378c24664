"""`python -m nbllm.training.worker RUN`: a process that trains a run, alone or as one rank of several.

One that `nb.train` starts with `where="process"` trains alone. The ranks of an `nb.Launch` are started by
`nbllm.training.supervisor`, or by torchrun, whose environment says which rank this is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from nbllm.distributed.plan import Plan
    from nbllm.training.trainer import Trainer

ENDING = "ending"  # a supervisor's file by which rank 0 says that it has heard it is to end
CODE = "code"  # the one that holds what the kernel has registered
LOOK_SECONDS = 0.2  # between looks whether the supervisor is still there


def main(arguments: list[str]) -> int:
    """Train the run directory that is named; SIGTERM, SIGINT and SIGHUP end it at the next step, saved.

    A rank of a supervisor is ended by SIGTERM at once, since it may wait for another that has gone; SIGINT ends the
    run by rank 0.
    """
    parser = argparse.ArgumentParser(prog="python -m nbllm.training.worker")
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--kernel", action="store_true", help="alone; standard input holds what the kernel has registered"
    )
    parser.add_argument(
        "--supervised", type=Path, help="the supervisor's folder: reports, and code of the kernel's"
    )
    parser.add_argument("--threads", type=int, help="to compute with (default: as the run's record says)")
    parser.add_argument("--plan", type=_plan, help="how the model lies over the ranks (default: as recorded)")
    options = parser.parse_args(arguments)
    if options.supervised is not None:
        _train_for_supervisor(options.run, options.supervised, options.threads, options.plan)
        return 0
    if options.kernel:
        from nbllm.training.kernel_code import register

        register(sys.stdin.buffer.read())
        _train_alone(options.run, options.plan)
    else:
        from nbllm.training.torchrun import train_as_rank

        train_as_rank(lambda: options.run)
    return 0


def _plan(text: str) -> Plan:
    from nbllm.distributed.plan import Plan

    return Plan.from_dict(json.loads(text))


def _train_alone(path: Path, plan: Plan | None) -> None:
    from nbllm.training.trainer import Trainer

    trainer = Trainer(path, where="process", plan=plan)

    def end(number: int, frame: object) -> None:
        trainer.exit_reason = f"signal {signal.Signals(number).name}"

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    # Windows has no such signal, and nohup has it ignored.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, end)
    trainer.run()


def _train_for_supervisor(path: Path, folder: Path, threads: int | None, plan: Plan | None) -> None:
    """Train as one of its ranks; what fails is reported to it, and ends this process whatever else it is doing."""
    rank = int(os.environ["RANK"])
    if rank > 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with(os.getppid(), folder)
    trainer: Trainer | None = None

    def end(number: int, frame: object) -> None:
        assert trainer is not None
        (folder / ENDING).touch()
        trainer.exit_reason = "the launch was interrupted"

    try:
        print_to_log(path, rank)
        from nbllm.distributed.process_group import joined_group
        from nbllm.runs.process import parent_process
        from nbllm.training.kernel_code import register
        from nbllm.training.trainer import Trainer

        register((folder / CODE).read_bytes())
        with joined_group() as ranks:
            trainer = Trainer(
                path,
                where="process",
                ranks=ranks,
                owner=parent_process(),
                num_threads=threads,
                plan=plan,
            )
            if rank == 0:
                signal.signal(signal.SIGINT, end)
            trainer.run()
        leave(0)
    except BaseException as error:
        from nbllm.training.failures import report_failure

        traceback.print_exc()
        report_failure(folder, rank, error, 0 if trainer is None else trainer.reached)
        leave(1)


def leave(code: int) -> NoReturn:
    """End this process at once: threads of libraries could keep it alive, and torch takes seconds to be taken apart."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def print_to_log(path: Path, rank: int) -> None:
    """Let all that this process and its libraries print go to the rank's log."""
    from nbllm.core.io import open_log
    from nbllm.runs.rank_logs import log_path

    with (
        contextlib.suppress(OSError),
        open_log(log_path(path, rank)) as log,
    ):  # a full disk must not end the run
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _end_with(supervisor: int, folder: Path) -> None:
    """End this process, and what it has started, as soon as its supervisor has gone; remove that one's folder."""

    def watch() -> None:
        while os.getppid() == supervisor:
            time.sleep(LOOK_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, name="watch the supervisor", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
