"""One line that says how far long work is, rewritten in place; silent where a line cannot be rewritten."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from nbllm.core.quantities import duration

_SECONDS_BETWEEN = 0.2
_QUIET_SECONDS = 1.0  # what is done sooner needs no line


class Progress:
    """A context in which `advance` tells how much was done.

    Args:
        label: What is done: "perplexity".
        total: How much there is.
        unit: Of what: "bytes".
        show: False is silent; so is a terminal-less process that is no notebook kernel.
    """

    def __init__(self, label: str, total: float, unit: str, *, show: bool = True) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = 0.0
        self._show = show and _rewritable()
        self._width = 0

    def __enter__(self) -> Self:
        self._began = self._last = time.monotonic()
        return self

    def advance(self, amount: float) -> None:
        """Say that `amount` more was done."""
        self.done += amount
        now = time.monotonic()
        if not self._show or now - self._last < _SECONDS_BETWEEN or now - self._began < _QUIET_SECONDS:
            return
        self._last = now
        left = (self.total - self.done) * (now - self._began) / max(self.done, 1e-9)
        share = self.done / self.total if self.total else 1.0
        text = f"{self.label}: {share:4.0%} of {self.total:,.0f} {self.unit}, {duration(max(left, 0.0))} left"
        _write(f"\r{text.ljust(self._width)}")
        self._width = len(text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._width:
            _clear(self._width)


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """A context in which a line says what a cell or a terminal waits for, once that takes longer than a moment."""
    shown = threading.Event()

    def show() -> None:
        shown.set()
        _write(text)

    timer = threading.Timer(_QUIET_SECONDS, show)
    if _rewritable() and threading.current_thread() is threading.main_thread():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if timer.ident is not None:
            timer.join()
        if shown.is_set():
            _clear(len(text))


def _rewritable() -> bool:
    return sys.stdout.isatty() or "ipykernel" in sys.modules


def _clear(width: int) -> None:
    _write(f"\r{' ' * width}\r")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
