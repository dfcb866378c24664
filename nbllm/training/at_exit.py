"""What becomes of the runs that threads of this process train when the process ends."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nbllm.core.errors import UserError
from nbllm.core.terminal import say
from nbllm.runs.run import Run
from nbllm.runs.waiting import check_outcome, watch

if TYPE_CHECKING:
    from nbllm.training.trainer import Trainer

STOP_SECONDS = 20.0  # how long the last checkpoints may take

Running = Sequence[tuple[threading.Thread, "Trainer"]]


def finish_or_stop(running: Running) -> None:
    """Let the runs of a script finish; stop, with a checkpoint, those of a kernel and of a script that has failed.

    Whoever writes a script that ends with `nb.train(...)` wants the run, not just its start; whoever closes a notebook
    does not want to wait for it. Ctrl-C stops the runs that a script waits for.

    Args:
        running: The threads that train, with their trainers.
    """
    reason = _reason_to_stop()
    if reason is None:
        try:
            for _, trainer in running:
                _let_finish(trainer)
        except KeyboardInterrupt:
            reason = "interrupted"
    if reason is not None:
        with contextlib.suppress(KeyboardInterrupt):
            _stop(running, reason)


def _reason_to_stop() -> str | None:
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        return "the kernel was shut down"
    if hasattr(sys, "ps1") or sys.flags.interactive:
        return "the interactive session was ended"
    if getattr(sys, "last_value", None) is not None:  # what the interpreter has just shown the traceback of
        return "the script was ended by an error"
    return None


def _let_finish(trainer: Trainer) -> None:
    run = Run(trainer.path)
    if not run.is_live:
        return
    say(
        f"The script is over, and waits for its run {run.name!r}; Ctrl-C stops it, with a checkpoint.",
        error=True,
    )
    try:
        watch(run, None, None, True)
        check_outcome(run)
    except UserError as error:
        say(error, error=True)


def _stop(running: Running, reason: str) -> None:
    live = [(thread, trainer) for thread, trainer in running if thread.is_alive()]
    for _, trainer in live:
        trainer.exit_reason = reason
    for thread, trainer in live:
        thread.join(STOP_SECONDS)
        path = trainer.path
        how = "goes down with it" if thread.is_alive() else f"is stopped at step {trainer.step}"
        say(
            f"The run {path.name!r} {how}: {reason}. nb.attach({str(path)!r}).resume() goes on "
            "from its newest checkpoint.",
            error=True,
        )
