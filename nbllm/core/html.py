"""HTML that notebooks, nbconvert, GitHub and browsers can all show: escaping, tables, the theme, whole pages.

Everything here returns strings. Text from data, models and people is hostile: it enters HTML only through `escape`.
A string that is HTML already is wrapped in `Raw`; every other string is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import html as _html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nbllm.core.quantities import column, number
from nbllm.core.terminal import visible
from nbllm.core.theme import PAGE_CSS, THEME_CSS as THEME_CSS

_GAP = "&ndash;"
_LONG = 40  # characters of a cell that its column must not be narrow for
_TAG = re.compile(r"<[^>]*>")


class Raw(str):
    """HTML that is safe already: `table` and `page` insert it unchanged."""

    __slots__ = ()


def escape(text: object) -> str:
    """Return `text` escaped for element content or a quoted attribute; control characters are replaced."""
    return _html.escape(visible(text), quote=True)


def cell(value: object) -> str:
    """Return one value as HTML: numbers with four significant digits, `None` as a dash, `Raw` unchanged."""
    if isinstance(value, Raw):
        return str(value)
    if value is None:
        return _GAP
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return escape(number(value))
    return escape(value)


def table(
    rows: Sequence[Sequence[object]],
    header: Sequence[object] = (),
    *,
    caption: str | None = None,
    row_headers: bool = False,
) -> Raw:
    """Return a table; columns in which every value is a number are aligned right.

    Args:
        rows: The cells: text (escaped), numbers, `None` or `Raw`.
        header: The column names; without any there is no header row.
        caption: A line above the table.
        row_headers: Whether the first column holds the rows' names.
    """
    width = max([len(header), *(len(row) for row in rows)], default=0)
    columns = [[row[i] for row in rows if i < len(row)] for i in range(width)]
    right = [is_numeric(values) for values in columns]
    shown = [iter(_column(values, flag)) for values, flag in zip(columns, right, strict=True)]
    kinds = [' class="number"' if flag else "" for flag in right]
    parts = [f"<caption>{escape(caption)}</caption>"] if caption else []
    labels = [
        f' data-label="{_TAG.sub("", cell(name))}"' for name in header
    ]  # shown beside the cell on a phone
    if header:
        names = "".join(f'<th scope="col"{kinds[i]}>{cell(name)}</th>' for i, name in enumerate(header))
        parts.append(f"<thead><tr>{names}</tr></thead>")
    body = []
    for row in rows:
        cells = []
        for i in range(len(row)):
            name, scope = ("th", ' scope="row"') if row_headers and i == 0 else ("td", "")
            label = labels[i] if i < len(labels) else ""
            cells.append(f"<{name}{scope}{kinds[i]}{label}>{next(shown[i])}</{name}>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    parts.append(f"<tbody>{''.join(body)}</tbody>")
    return Raw(f'<div class="nbllm-scroll"><table>{"".join(parts)}</table></div>')


def _column(values: Sequence[Any], numeric: bool) -> list[str]:
    return (
        column(values, _GAP)
        if numeric
        else [_wide(cell(value)) if _is_long(value) else cell(value) for value in values]
    )


def _is_long(value: object) -> bool:
    return isinstance(value, str) and len(value) > _LONG


def _wide(content: str) -> str:
    return f'<div class="long">{content}</div>'


def key_values(entries: Mapping[str, object] | Sequence[tuple[str, object]]) -> Raw:
    """Return a two-column table of names and their values."""
    pairs = list(entries.items()) if isinstance(entries, Mapping) else list(entries)
    return Raw(table(pairs, row_headers=True).replace("<table>", '<table class="pairs">', 1))


def is_numeric(values: Sequence[object]) -> bool:
    """Return whether a column reads as numbers: at least one, and nothing but numbers and gaps."""
    present = [value for value in values if value is not None]
    return bool(present) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in present)


def fragment(body: str) -> str:
    """Return `body` with the theme, for a notebook cell (`_repr_html_`)."""
    return f'<div class="nbllm"><style>{THEME_CSS}</style>{body}</div>'


def page(title: str, body: str, *, css: str = "", script: str = "") -> str:
    """Return a complete page that needs nothing else; its content security policy forbids all but itself.

    Args:
        title: Of the window.
        body: HTML.
        css: Styles beside those that everything shares.
        script: JavaScript to run when the page is read; the policy allows it by its digest, and no other.
    """
    code, allowed = "", ""
    if script:
        assert "</script" not in script.lower(), "a script that ends itself"
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        code, allowed = f"<script>{script}</script>\n", f"script-src 'sha256-{digest}'; "
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"{allowed}style-src 'unsafe-inline'; img-src data:\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{THEME_CSS}{PAGE_CSS}{css}</style>\n</head>\n"
        f'<body>\n<main class="nbllm nbllm-page">\n{body}\n</main>\n{code}</body>\n</html>\n'
    )
