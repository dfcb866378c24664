"""What every reader yields."""

from __future__ import annotations

from typing import NamedTuple

from nbllm.data.sources.chats import Message


class Document(NamedTuple):
    """One text and where it came from."""

    text: str
    source: str  # short, for the column `source`: "assert", "notes.txt", "pages.jsonl:12"
    where: str  # full, for error messages: the path as the person gave it, and the line
    messages: list[Message] | None = None  # of a conversation; `text` is then its plain rendering
