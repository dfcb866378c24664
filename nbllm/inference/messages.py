"""The messages of a conversation, as OpenAI's interface has them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nbllm.core.errors import UserError, listed
from nbllm.inference.unicode import check_unicode

Message = Mapping[str, Any]

ROLES = ("system", "user", "assistant")
_SAME_ROLE = {"developer": "system"}  # its newer name
# Keys whose value says what a text model cannot be told. Empty, as OpenAI's own replies have them, they say nothing.
_NOT_UNDERSTOOD = ("tool_calls", "function_call", "tool_call_id", "audio", "refusal")


def check_messages(messages: str | Sequence[Message]) -> list[dict[str, Any]]:
    """Return a conversation as messages of role, content (a text) and what else they hold.

    A text alone is a message of the user. An assistant's message at the end is the beginning of an answer.

    Raises:
        UserError: It is no conversation that can be answered: which message, and why.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, (list, tuple)):
        raise UserError(
            f"The messages must be a text or a list of messages, not {type(messages).__name__}.",
            hint='a message is {"role": "user", "content": "..."}',
        )
    checked = [_check_message(message, f"message {i}") for i, message in enumerate(messages)]
    if not checked or checked[-1]["role"] == "system":
        raise UserError(
            "The conversation does not end with a message of the user, so there is nothing to answer.",
            hint='append {"role": "user", "content": "..."}; an assistant\'s message at the end is continued',
        )
    return checked


def _check_message(message: object, where: str) -> dict[str, Any]:
    if callable(dump := getattr(message, "model_dump", None)):  # as OpenAI's client returns it
        message = dump()
    if not isinstance(message, Mapping):
        raise UserError(
            f"A message must be a mapping with a role and a content, not {type(message).__name__}.",
            where=where,
        )
    given = {
        str(key): value for key, value in message.items() if key == "content" or not _says_nothing(value)
    }
    if not {"role", "content"} <= given.keys():
        raise UserError(
            f"A message has a role and a content; this one has {listed(sorted(given))}.", where=where
        )
    role = _SAME_ROLE.get(str(given["role"]), given["role"])
    if role not in ROLES:
        raise UserError(f"There is no role {role!r}.", where=where, hint=f"one of {', '.join(ROLES)}")
    for key in _NOT_UNDERSTOOD:
        if key in given:
            raise UserError(
                f"The message has {key!r}, which is not understood: a message holds text alone.",
                where=where,
                hint="leave it out, or say it as content",
            )
    content = _text_of(given["content"], where)
    check_unicode(content, "content", where)
    extra = {key: value for key, value in given.items() if key not in ("role", "content")}
    try:
        json.dumps(extra, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"What the message has beside its content is no JSON: {error}", where=where) from None
    return {"role": role, "content": content, **extra}


def _says_nothing(value: object) -> bool:
    return value is None or (isinstance(value, (str, list, tuple, dict)) and not value)


def _text_of(content: object, where: str) -> str:
    """Return a content as text: parts of type "text" are joined, as they are in training data."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise UserError(f"The content must be a text, not {type(content).__name__}.", where=where)
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
        text = part.get("text") if isinstance(part, Mapping) and kind == "text" else None
        if not isinstance(text, str):
            raise UserError(
                f"A part of the content is of type {kind!r}, which is not understood.",
                where=where,
                hint='the model reads text: {"type": "text", "text": "..."}',
            )
        texts.append(text)
    return "".join(texts)
