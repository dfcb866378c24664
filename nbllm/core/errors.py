"""The errors that a person sees: what is wrong, where, and how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from nbllm.core.terminal import shorten, visible, visible_line

MOST_CHARACTERS = 2000  # of each part of a message: nobody reads a message that names a million columns
MOST_NAMES, MOST_LETTERS = 2000, 200  # compared with a misspelt name


class UserError(ValueError):
    """Something the person can fix.

    Names and excerpts in a message come from data, models and other people: `str(error)` shows control and
    reordering characters as U+FFFD and shortens what is very long.

    Args:
        what: One sentence: what is wrong.
        where: The file, line, column, module or setting.
        hint: What to do about it.
    """

    def __init__(self, what: str, *, where: object = None, hint: str | None = None) -> None:
        self.what = _shown(what)
        self.where = where
        self.hint = None if hint is None else _shown(hint)
        parts = [self.what]
        if where is not None:
            parts.append(f"  where: {shorten(visible_line(where), MOST_CHARACTERS)}")
        if self.hint is not None:
            parts.append(f"  hint:  {self.hint}")
        super().__init__("\n".join(parts))

    @property
    def one_line(self) -> str:
        """What is wrong and how to fix it, in one line."""
        return self.what if self.hint is None else f"{self.what} {self.hint}"

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a traceback, which would bury the message."""
        return [f"{type(self).__name__}: {self}"]

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.hint))


class DataError(UserError):
    """A text, a file or a data set cannot be used as it is."""


class WeightsError(UserError):
    """A model directory or its weights cannot be used as they are."""


class CacheError(UserError):
    """The cache folder cannot be written: the disk is full, or permission is missing."""


class FetchError(UserError):
    """A published model cannot be downloaded, or the download is not what was expected."""


class RunError(UserError):
    """A run directory cannot be used as asked."""


class RefusedError(RunError):
    """A run refused a command; `what` is the reason it gave."""


class SkippedWarning(UserWarning):
    """Data was left out because the caller asked for `on_error="skip"`."""


def _shown(text: str) -> str:
    return shorten(visible(text), MOST_CHARACTERS)


def _rebuild(kind: type[UserError], what: str, where: object, hint: str | None) -> UserError:
    return kind(what, where=where, hint=hint)


def nearest(name: str, known: Iterable[str], *, most: int = 30) -> str:
    """Return the hint `Did you mean 'x'?`, or when nothing is close the list of what is known, `most` of it."""
    names = sorted(known)
    close = closest(name, names)
    return f"Known: {listed(names, quote=False, most=most)}." if close is None else f"Did you mean {close!r}?"


def closest(name: str, known: Sequence[str]) -> str | None:
    """Return the known name that is most like `name`, or `None` when nothing is close."""
    # The comparison is quadratic in the lengths: neither a name of 5,000 letters nor a million names are compared.
    comparable = [other for other in known[:MOST_NAMES] if len(other) <= MOST_LETTERS]
    close = difflib.get_close_matches(name[:MOST_LETTERS], comparable, n=1, cutoff=0.6)
    return close[0] if close else None


def listed(names: Iterable[object], *, quote: bool = True, most: int = 30) -> str:
    """Return names for a message, the first `most` of them: "'a', 'b' and 998 more"; "none" where there is none."""
    names = list(names)
    shown = ", ".join(repr(name) if quote else str(name) for name in names[:most]) or "none"
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"
