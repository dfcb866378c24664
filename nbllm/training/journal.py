"""What a trainer writes into its run's events, and what it does while the disk does not take them."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import psutil

from nbllm.core.errors import RunError
from nbllm.runs.events import EventWriter
from nbllm.runs.process import this_process

if TYPE_CHECKING:
    from nbllm.training.state import TrainState

HEARTBEAT_SECONDS = 5.0


class Journal:
    """A trainer's events. While the disk refuses them they are kept in memory, and `flush` says so."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._process = psutil.Process()
        self._stopped = threading.Event()
        self._complained = False
        self._last_step = 0

    def __enter__(self) -> Self:
        self.writer = EventWriter(self.path, "trainer")
        self._heart = threading.Thread(target=self._beat, name=f"heartbeat of {self.path.name}", daemon=True)
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._heart.join()
        self.flush()
        self.writer.close()

    def emit(self, kind: str, *, step: int, **fields: Any) -> None:
        """Write one event, or keep it until `flush` succeeds."""
        self._last_step = step
        self._try(lambda: self.writer.write(kind, step, **fields))

    def flush(self) -> bool:
        """Write what was kept; return whether everything is on the disk now."""
        return self._try(self.writer.flush)

    def start(self, *, step: int, checkpoint: str, choices: dict[str, Any], where: str) -> None:
        """A trainer took the run up at `step`."""
        self.emit(
            "start",
            step=step,
            from_step=step,
            checkpoint=checkpoint,
            choices=choices,
            where=where,
            **this_process(),
        )

    def step(
        self, state: TrainState, *, loss: float, lr: float, grad_norm: float, tokens_per_second: float
    ) -> None:
        """One step was taken."""
        self.emit(
            "step",
            step=state.step,
            loss=loss,
            lr=lr,
            grad_norm=grad_norm,
            tokens=state.tokens,
            tokens_per_second=tokens_per_second,
            memory=self._process.memory_info().rss,
            seconds=state.seconds,
        )

    def end(self, *, step: int, state: str, reason: str | None, digest: str | None) -> None:
        """The run is over, for this trainer."""
        self.emit("end", step=step, state=state, reason=reason, digest=digest)

    def fail(self, error: BaseException, *, step: int) -> None:
        """The run ended by an error."""
        where = traceback.extract_tb(error.__traceback__)
        place = f" (in {where[-1].name}, {Path(where[-1].filename).name}:{where[-1].lineno})" if where else ""
        reason = f"{type(error).__name__}: {error}{place}"
        self.emit("end", step=step, state="failed", reason=reason, digest=None)

    def _beat(self) -> None:
        while not self._stopped.wait(HEARTBEAT_SECONDS):
            self._try(lambda: self.writer.write("heartbeat", self._last_step))

    def _try(self, write: Callable[[], object]) -> bool:
        try:
            write()
        except RunError as error:
            if not self._complained:  # the events cannot say it, so the terminal must
                sys.stderr.write(f"{error}\nThe run waits.\n")
            self._complained = True
            return False
        self._complained = False
        return True
