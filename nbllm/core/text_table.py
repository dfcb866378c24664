"""Tables in plain text, for `repr` and the command line."""

from __future__ import annotations

from collections.abc import Sequence

from nbllm.core.terminal import visible_line


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of equal length as lines with aligned columns.

    Control and reordering characters in cells are made visible.

    >>> print(text_table([("name", "size"), ("small", "2 MB")]))
    name   size
    small  2 MB
    """
    rows = [[visible_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
