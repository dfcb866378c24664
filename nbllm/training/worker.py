"""`python -m nbllm.training.worker RUN`: the process that trains a run started with `where="process"`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from nbllm.training.trainer import Trainer


def main(arguments: list[str]) -> int:
    """Train the run directory named by the one argument; SIGTERM, SIGINT and SIGHUP end it at the next step, saved."""
    trainer = Trainer(Path(arguments[0]), where="process")

    def end(number: int, frame: object) -> None:
        trainer.exit_reason = f"signal {signal.Signals(number).name}"

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    # Windows has no such signal, and nohup has it ignored.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, end)
    trainer.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
