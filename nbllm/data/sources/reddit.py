"""Reddit's dumps: submissions and comments, one JSON object a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GONE = frozenset(("[deleted]", "[removed]", ""))


def is_reddit(row: Mapping[str, Any]) -> bool:
    """Return whether a row is a submission or a comment."""
    return "subreddit" in row and ("selftext" in row or ("body" in row and "link_id" in row))


def post_text(row: Mapping[str, Any]) -> str | None:
    """Return title and text of a submission, or the text of a comment; None where it was deleted or is a link."""
    if "selftext" not in row:
        body = row["body"]
        return body if isinstance(body, str) and body.strip() not in GONE else None
    title, text = row.get("title"), row["selftext"]
    if not isinstance(title, str) or not isinstance(text, str) or text.strip() in GONE:
        return None
    return f"{title}\n\n{text}"
