"""From a conversation to the prompt that a model was made to answer, by its tokenizer's chat template."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

from nbllm.core.errors import UserError
from nbllm.data.chat_template import encode_conversation, render
from nbllm.data.document_bounds import document_bounds
from nbllm.data.encoding import added_before
from nbllm.inference.messages import ROLES as ROLES, Message, check_messages

# For a tokenizer without a template, such as one trained here: roles are plain words, so a text may imitate them.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content }}\n\n"
    "{% elif message.role == 'user' %}User: {{ message.content }}\n"
    "{% else %}Assistant: {{ message.content }}\n"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
PLAIN_STOPS = ("\nUser:", "\nAssistant:")

_MARK = "nbllm-end-of-answer"


@dataclasses.dataclass(frozen=True)
class ChatPrompt:
    """A conversation as the model reads it.

    Attributes:
        tokens: Token ids, the beginning of the answer included.
        parts: The same as text, in parts of the template's own control tokens (True) and all else (False): a control
            token that somebody wrote into a message is text.
        end_ids: Tokens that end the answer: the tokenizer's end of text, the template's end of a turn, and those that
            the model's makers state.
        stop: Strings that end the answer, where the roles are plain words.
        begun: The beginning of the answer that the conversation ends with, or "".
    """

    tokens: tuple[int, ...]
    parts: tuple[tuple[str, bool], ...]
    end_ids: frozenset[int]
    stop: tuple[str, ...]
    begun: str = ""

    @property
    def text(self) -> str:
        """The prompt as text."""
        return "".join(text for text, _ in self.parts)


def render_chat(
    tokenizer: Any,
    messages: str | Sequence[Message],
    *,
    end_tokens: Collection[int] = (),
    should_stop: Callable[[], bool] | None = None,
) -> ChatPrompt:
    """Render a conversation with the tokenizer's chat template, up to where the answer begins.

    A template comes with a model and is not trusted: it is rendered in a process of its own, which is killed when it
    takes too long or too much memory (`nbllm.data.chat_template`). Control tokens that stand in messages are encoded as
    ordinary text, so a message cannot forge a role; where the roles are plain words (`PLAIN_TEMPLATE`, for a tokenizer
    without a template), it can.

    Args:
        tokenizer: A transformers tokenizer.
        messages: Text of the user, or messages with "role" (one of `ROLES`) and "content". An assistant's message at
            the end is the beginning of the answer, which goes on from it.
        end_tokens: Tokens that end the answer besides the tokenizer's and the template's own (`LM.end_tokens`).
        should_stop: Asked while the template renders; a true answer ends it.

    Raises:
        UserError: The messages are no conversation, or the template cannot render them.
        CancelledError: `should_stop` said so.
    """
    conversation = check_messages(messages)
    continued = conversation[-1]["role"] == "assistant"
    template, stop = _template(tokenizer)
    tokens = encode_conversation(
        tokenizer, conversation, template=template, should_stop=should_stop,
        **{"continue_final_message" if continued else "add_generation_prompt": True},
    )  # fmt: skip
    if stop:  # a template writes what begins a conversation itself
        tokens = added_before(tokenizer) + tokens
    ends = {
        tokenizer.eos_token_id,
        _end_of_turn(tokenizer, template, should_stop),
        *document_bounds(tokenizer).end_tokens,
        *end_tokens,
    }
    return ChatPrompt(
        tokens=tuple(tokens),
        parts=_parts(tokenizer, tokens),
        end_ids=frozenset(int(token) for token in ends if token is not None),
        stop=stop,
        begun=conversation[-1]["content"] if continued else "",
    )


def _template(tokenizer: Any) -> tuple[str, tuple[str, ...]]:
    """Return the tokenizer's template, or the plain one, and the stop strings that it needs."""
    if not tokenizer.chat_template:
        return PLAIN_TEMPLATE, PLAIN_STOPS
    try:
        return str(tokenizer.get_chat_template()), ()
    except ValueError as error:
        raise UserError(f"The tokenizer's chat template cannot be used: {error}") from error


def _end_of_turn(tokenizer: Any, template: str, should_stop: Callable[[], bool] | None) -> int | None:
    """Return the token that the template writes after an answer, or `None`."""
    exchange = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
    try:
        text = render(tokenizer, exchange, template=template, should_stop=should_stop)
    except UserError:
        return None  # of a template that wants more than an exchange; the end of text still ends the answer
    tail = text.rpartition(_MARK)[2].lstrip()
    added = {str(token): int(number) for token, number in tokenizer.get_added_vocab().items()}
    found = [token for token in added if tail.startswith(token)]
    return added[max(found, key=len)] if found else None


def _parts(tokenizer: Any, tokens: Sequence[int]) -> tuple[tuple[str, bool], ...]:
    """Decode tokens in runs of control tokens and of all else."""
    controls = set(tokenizer.get_added_vocab().values())
    runs: list[tuple[bool, list[int]]] = []
    for token in tokens:
        control = token in controls
        if not runs or runs[-1][0] != control:
            runs.append((control, []))
        runs[-1][1].append(token)
    return tuple(
        (str(tokenizer.decode(run, clean_up_tokenization_spaces=False)), control) for control, run in runs
    )
