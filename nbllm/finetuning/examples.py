"""An example to learn from: a conversation, or a prompt and what completes it."""

from __future__ import annotations

import dataclasses

from nbllm.data.sources.chats import Message


@dataclasses.dataclass(frozen=True)
class Span:
    """Characters of an answer that count more or less than the rest.

    Attributes:
        message: The number of the message; 0 for a completion.
        start: The first character of what it says.
        stop: The one after the last.
        weight: What its tokens count, times the weights of turn and example.
    """

    message: int
    start: int
    stop: int
    weight: float


@dataclasses.dataclass(frozen=True)
class Example:
    """One example: a conversation, or a prompt and what completes it; a plain text has no prompt.

    Attributes:
        messages: Of a conversation, with "role" and "content".
        prompt: The text before the completion.
        completion: The text that completes it.
        weight: What each of its trained tokens counts in the loss.
        turn_weights: Of each message, times that; none: 1 each.
        spans: Parts of answers with weights of their own.
    """

    messages: tuple[Message, ...] = ()
    prompt: str = ""
    completion: str = ""
    weight: float = 1.0
    turn_weights: tuple[float, ...] = ()
    spans: tuple[Span, ...] = ()

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of its text."""
        texts = [self.prompt, self.completion, *(message["content"] for message in self.messages)]
        return sum(len(text.encode(errors="replace")) for text in texts)

    @property
    def is_weighted(self) -> bool:
        """Whether any of its tokens counts other than 1."""
        return self.weight != 1 or bool(self.turn_weights or self.spans)
