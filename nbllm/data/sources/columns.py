"""Which column holds the text, and whether a value is text."""

from __future__ import annotations

from collections.abc import Sequence

from nbllm.core.errors import nearest
from nbllm.data.sources.omissions import Omissions


def choose_column(
    known: Sequence[str], textual: Sequence[str], wanted: str | None, *, where: str, omissions: Omissions
) -> str | None:
    """Return the column to read, or None when it is missing and to be left out.

    Args:
        known: All columns.
        textual: Those that hold strings.
        wanted: The column asked for; without one it is `text`, or else the only one that holds strings.
        where: For the error.
        omissions: Told when there is no such column.
    """
    if wanted is not None and wanted in known:
        return wanted
    if wanted is None and "text" in known:
        return "text"
    if wanted is None and len(textual) == 1:
        return textual[0]
    name = "text" if wanted is None else wanted
    listed = ", ".join(repr(column) for column in known) or "none"
    omissions.add(
        "missing column",
        f"There is no column {name!r}. Columns: {listed}.",
        where=where,
        hint=nearest(name, known)
        if wanted is not None and known
        else "Name one of them: load(..., column=...).",
    )
    return None


def accept_text(value: object, column: str, *, where: str, omissions: Omissions) -> str | None:
    """Return the value when it is text, else leave it out and return None."""
    if isinstance(value, str):
        return value
    found = "nothing" if value is None else type(value).__name__
    omissions.add(
        "no text in column",
        f"Column {column!r} holds {found} where text should be.",
        where=where,
        hint="Mend the row, or name another column: load(..., column=...).",
    )
    return None
