"""Progress lines, rewritten in place; silent where the output is neither a terminal nor a notebook."""

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
    """Return a tqdm progress bar: `update(amount)` advances it, and leaving its context clears it.

    It is a line of text in notebooks too, not tqdm's widget: a saved notebook keeps the widget's output without the
    widget, and shows an error in its place.

    Args:
        label: What is being done: "perplexity".
        total: The amount of work; `None` where it is not known.
        unit: What is counted: " documents", or "B" for bytes, which are shown in thousands and millions.
        show: False never shows anything.
    """
    return _bar()(
        desc=label,
        total=total,
        unit=unit,
        unit_scale=unit == "B",
        leave=False,
        delay=_QUIET_SECONDS,
        mininterval=_SECONDS_BETWEEN,
        dynamic_ncols=True,
        file=sys.stdout,
        disable=not (show and rewritable()),
    )


def status_line(text: str, *, leave: bool = False) -> tqdm[None]:
    """Return a status line, for what is not a count: `set_description_str(text)` rewrites it, `close()` ends it.

    Args:
        text: What it says first.
        leave: Whether the line stays when it is closed.
    """
    return _bar()(desc=text, bar_format="{desc}", leave=leave, file=sys.stdout)


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """A context that shows what is being waited for, once it takes longer than a second.

    For work that cannot be counted. A timer shows the line, since the work itself cannot.
    """
    lines: list[tqdm[None]] = []

    def show() -> None:
        lines.append(status_line(text))

    timer = threading.Timer(_QUIET_SECONDS, show)
    if rewritable() and threading.current_thread() is threading.main_thread():
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
        monitor_interval = 0  # no monitor thread: every bar here is updated often enough

    return Bar


def rewritable() -> bool:
    """Whether a line of the output can be rewritten in place: it goes to a terminal or a notebook, not to a file."""
    return sys.stdout.isatty() or "ipykernel" in sys.modules
