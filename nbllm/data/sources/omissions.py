"""What cannot be read: an error at once, or counted and reported at the end."""

from __future__ import annotations

import warnings
from collections import Counter

from nbllm.core.errors import DataError, SkippedWarning, UserError
from nbllm.core.terminal import visible

NUM_EXAMPLES = 3  # places named per kind in the report
MOST_NOTES = 20


class Omissions:
    """Raises, or counts, each thing that cannot be used.

    Args:
        on_error: "raise" or "skip".
    """

    def __init__(self, on_error: str) -> None:
        if on_error not in ("raise", "skip"):
            raise UserError(f"on_error is {on_error!r}; it must be 'raise' or 'skip'.")
        self.skip = on_error == "skip"
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self.notes: list[str] = []

    def add(self, kind: str, what: str, *, where: str, hint: str, count: int = 1) -> None:
        """Raise the error, or count it under `kind` and go on.

        Args:
            kind: A few words, counted together: "invalid UTF-8".
            what: One sentence about this one.
            where: File, line, column.
            hint: What to do about it.
            count: How many were left out at once.

        Raises:
            DataError: Unless asked to skip.
        """
        if not self.skip:
            raise DataError(what, where=where, hint=f"{hint} Or leave such parts out: on_error='skip'.")
        self.counts[kind] += count
        places = self.examples.setdefault(kind, [])
        if len(places) < NUM_EXAMPLES:
            places.append(where)

    def note(self, sentence: str) -> None:
        """Record something for the description that is not an error."""
        if sentence not in self.notes and len(self.notes) < MOST_NOTES:
            self.notes.append(sentence)

    def summary(self) -> str:
        """Return one sentence on what was left out, or nothing when nothing was."""
        if not self.counts:
            return ""
        parts = []
        for kind, count in self.counts.most_common():
            places = "; ".join(self.examples[kind]) + (" ..." if count > len(self.examples[kind]) else "")
            parts.append(f"{count} x {kind} ({places})")
        return visible(f"Left out: {', '.join(parts)}.")

    def report(self, description: str) -> str:
        """Return the description with what was left out, which is also given as a `SkippedWarning`."""
        summary = self.summary()
        if summary:
            warnings.warn(summary, SkippedWarning, stacklevel=4)
        return " ".join(part for part in (description, *self.notes, summary) if part)
