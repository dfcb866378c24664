"""Display an object in the running notebook cell, from code that does not depend on notebooks."""

from __future__ import annotations

from collections.abc import Callable

_show: Callable[[object], object] | None = None


def show_with(function: Callable[[object], object]) -> None:
    """Set the function that displays objects; a notebook kernel sets it."""
    global _show
    _show = function


def show(thing: object) -> None:
    """Display an object as if it were the value of the running cell; outside a notebook do nothing."""
    if _show is not None:
        _show(thing)
