"""Examples to learn from, in the layouts that data sets have.

| layout | fields |
|---|---|
| messages | `messages` or `conversations`: OpenAI's ("role", "content") or ShareGPT's ("from", "value") |
| instructions (Alpaca) | `instruction`, perhaps `input`, and `output`; a conversation of two turns |
| prompt and completion | `prompt` and `completion`: texts, or messages |
| plain text | `text`, or a string |
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nbllm.core.errors import DataError, UserError, listed
from nbllm.core.io import expand_user
from nbllm.data.sources.chats import COLUMNS, Message, is_conversation, read_messages
from nbllm.inference.messages import ROLES


@dataclasses.dataclass(frozen=True)
class Example:
    """One example: a conversation, or a prompt and what completes it; a plain text has no prompt.

    Attributes:
        messages: Of a conversation, with "role" and "content".
        prompt: The text before the completion.
        completion: The text that completes it.
    """

    messages: tuple[Message, ...] = ()
    prompt: str = ""
    completion: str = ""

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of its text."""
        texts = [self.prompt, self.completion, *(message["content"] for message in self.messages)]
        return sum(len(text.encode(errors="replace")) for text in texts)


def read_example(value: object) -> Example:
    """Return the example that a value holds, in one of the layouts.

    Raises:
        DataError: It has none of them, an unknown role, no answer, or an empty one.
    """
    if isinstance(value, str):
        return Example(completion=_text(value, "text"))
    if is_conversation(value):
        return _conversation(value)
    if not isinstance(value, Mapping):
        raise DataError(f"An example is a text, messages or a mapping, not {type(value).__name__}.")
    fields = {str(key): each for key, each in value.items() if each is not None}
    for name in COLUMNS:
        if is_conversation(fields.get(name)):
            return _conversation(fields[name])
    if {"prompt", "completion"} <= fields.keys():
        prompt, completion = fields["prompt"], fields["completion"]
        if is_conversation(prompt) and is_conversation(completion):
            return _conversation([*prompt, *completion])
        return Example(
            prompt=_text(prompt, "prompt", may_be_empty=True), completion=_text(completion, "completion")
        )
    if {"instruction", "output"} <= fields.keys():
        asked = [fields["instruction"], fields.get("input", "")]
        question = "\n\n".join(
            filter(None, (_text(each, "instruction", may_be_empty=True) for each in asked))
        )
        answer = _text(fields["output"], "output")
        return _conversation(
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        )
    if "text" in fields:
        return Example(completion=_text(fields["text"], "text"))
    raise DataError(
        f"The example has the fields {listed(sorted(fields))}; none of the known layouts.",
        hint="messages; instruction, input and output; prompt and completion; or text.",
    )


def _read_json(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"The examples cannot be read: {error}", where=path) from None
    if not isinstance(rows, list):
        raise DataError("The file holds no list of examples.", where=path)
    return rows


def _conversation(value: Any) -> Example:
    messages = read_messages(value)
    if messages is None:
        raise DataError("A message of the conversation holds no text.")
    for message in messages:
        if message["role"] not in ROLES:
            raise DataError(f"There is no role {message['role']!r}.", hint=f"One of {', '.join(ROLES)}.")
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    if not any(answer.strip() for answer in answers):
        raise DataError("The conversation has no answer." if not answers else "Its answers are empty.")
    return Example(messages=tuple(messages))


def _text(value: object, name: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise DataError(f"{name} must be a text, not {type(value).__name__}.")
    if not may_be_empty and not value.strip():
        raise DataError(f"{name} is empty.")
    return value


def rows_of(data: Any) -> Sequence[Any] | Any:
    """Return the rows of what holds examples: a list, a data set, a JSON file, or what `nbllm.data.load` takes.

    Raises:
        UserError: It is no such thing.
        DataError: The JSON file cannot be read.
    """
    if isinstance(data, (str, os.PathLike)):
        from nbllm.data.sources.loading import load

        path = expand_user(data)
        return (
            _read_json(path) if path.suffix.lower() in (".json", ".jsonl") and path.is_file() else load(data)
        )
    if isinstance(data, Mapping) or not hasattr(data, "__iter__"):
        raise UserError(
            f"The examples must be a list, a data set or a name, not {type(data).__name__}.",
            hint='[{"messages": [...]}, ...]',
        )
    return data
