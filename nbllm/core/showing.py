"""Showing a thing in the cell that is being run, from code that knows nothing of notebooks."""

from __future__ import annotations

from collections.abc import Callable

_show: Callable[[object], object] | None = None


def show_with(function: Callable[[object], object]) -> None:
    """Show things by this function from now on; a notebook's kernel sets it."""
    global _show
    _show = function


def show(thing: object) -> None:
    """Show a thing as if it were the value of the cell that runs; nothing where there is no notebook."""
    if _show is not None:
        _show(thing)
