"""What a person who waits sees: one line, rewritten in place; nothing where a line cannot be rewritten."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm.std import tqdm

_SECONDS_BETWEEN = 0.2
_QUIET_SECONDS = 1.0  # what is done sooner needs no line


def progress(label: str, total: float | None, unit: str, *, show: bool = True) -> tqdm[None]:
    """Return a tqdm progress bar, whose `update(amount)` says how much more was done; a context that clears it.

    It is a line of text in notebooks too, not tqdm's widget: a notebook that is saved keeps the widget's output but not
    the widget, and shows an error in its place.

    Args:
        label: What is done: "perplexity".
        total: How much there is; `None` where that is not known.
        unit: Of what: "B" for bytes, " examples".
        show: False is silent; so is a process whose output is neither a terminal nor a notebook.
    """
    return _bar()(
        desc=label,
        total=total,
        unit=unit,
        unit_scale=True,
        leave=False,
        delay=_QUIET_SECONDS,
        mininterval=_SECONDS_BETWEEN,
        dynamic_ncols=True,
        file=sys.stdout,
        disable=not (show and _rewritable()),
    )


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """A context in which a line says what a cell or a terminal waits for, once that takes longer than a moment.

    For work that cannot be counted. The line comes from a timer, since nothing else runs meanwhile.
    """
    lines: list[tqdm[None]] = []

    def show() -> None:
        lines.append(_bar()(desc=text, bar_format="{desc}", leave=False, file=sys.stdout))

    timer = threading.Timer(_QUIET_SECONDS, show)
    if _rewritable() and threading.current_thread() is threading.main_thread():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if timer.ident is not None:
            timer.join()
        for line in lines:
            line.close()


def _bar() -> type[tqdm[None]]:
    from tqdm.std import tqdm

    class Bar(tqdm):
        monitor_interval = 0  # no thread that watches: every bar here is updated often enough

    return Bar


def _rewritable() -> bool:
    return sys.stdout.isatty() or "ipykernel" in sys.modules
