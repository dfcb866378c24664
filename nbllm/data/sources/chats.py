"""Conversations: as OpenAI writes them ("role", "content") and as ShareGPT does ("from", "value")."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Message = dict[str, str]  # "role" and "content"

KEYS = (("role", "content"), ("from", "value"))
COLUMNS = ("messages", "conversations", "conversation")  # where data sets keep them
ROLES = {
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant", "bing": "assistant", "bard": "assistant",
}  # fmt: skip

# How data sets write a conversation as one text: hh-rlhf and static-hh, OIG. A turn begins on a line of its own.
_TURN = re.compile(r"(?:^|\n)[ \t]*(?:<(human|bot|user|assistant|system)>|(Human|Assistant|System)): ?")


def is_conversation(value: object) -> bool:
    """Return whether a value is a list of messages, in one of the two spellings."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str | bytes)
        and bool(value)
        and all(_keys(message) is not None for message in value)
    )


def read_messages(value: Sequence[Mapping[str, Any]]) -> list[Message] | None:
    """Return the messages of a conversation in OpenAI's spelling, or None where one holds no text.

    Parts of type "text" are joined; a message without content, such as one that only calls tools, is empty.
    """
    messages = []
    for message in value:
        keys = _keys(message)
        assert keys is not None
        role, content = (message[key] for key in keys)
        if isinstance(content, Sequence) and not isinstance(content, str | bytes):
            parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
            content = "".join(parts) if all(isinstance(part, str) for part in parts) else content  # type: ignore[arg-type]
        content = "" if content is None else content
        if not isinstance(role, str) or not isinstance(content, str):
            return None
        messages.append({"role": ROLES.get(role.lower(), role.lower()), "content": content})
    return messages


def read_transcript(text: str) -> list[Message]:
    """Return the turns of a conversation written as one text; none where it is not written so.

    The layouts are those of hh-rlhf and static-hh, "Human:" and "Assistant:" at the beginning of lines, and of OIG,
    "<human>:" and "<bot>:". What a turn says is stripped of white space; the last one may be empty, where the
    text ends with the beginning of an answer.
    """
    marks = list(_TURN.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        return []
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    turns = []
    for mark, end in zip(marks, ends, strict=True):
        role = (mark[1] or mark[2]).lower()
        turns.append({"role": ROLES.get(role, role), "content": text[mark.end() : end].strip()})
    return turns


def plain_text(messages: Sequence[Message]) -> str:
    """Render a conversation without control tokens, with the roles as plain words."""
    parts = []
    for message in messages:
        role = message["role"]
        begin, end = ("", "\n\n") if role == "system" else (f"{role.capitalize()}: ", "\n")
        parts.append(f"{begin}{message['content']}{end}")
    return "".join(parts)


def _keys(message: object) -> tuple[str, str] | None:
    if not isinstance(message, Mapping):
        return None
    return next((keys for keys in KEYS if all(key in message for key in keys)), None)
