"""From a conversation to the prompt that a model was made to answer, by its tokenizer's chat template."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from nbllm.core.errors import UserError
from nbllm.inference.unicode import check_unicode

Message = Mapping[str, str]

ROLES = ("system", "user", "assistant")

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
        end_ids: Tokens that end the answer: the tokenizer's end of text, and the template's end of a turn.
        stop: Strings that end the answer, where the roles are plain words.
    """

    tokens: tuple[int, ...]
    parts: tuple[tuple[str, bool], ...]
    end_ids: frozenset[int]
    stop: tuple[str, ...]

    @property
    def text(self) -> str:
        """The prompt as text."""
        return "".join(text for text, _ in self.parts)


def check_messages(messages: str | Sequence[Message]) -> list[dict[str, str]]:
    """Return a conversation as a list of messages: a text is one message of the user.

    Raises:
        UserError: It is no conversation that ends with a question: which message, and why.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, (list, tuple)):
        raise UserError(
            f"The messages must be a text or a list of messages, not {type(messages).__name__}.",
            hint='a message is {"role": "user", "content": "..."}',
        )
    checked = [_check_message(message, f"message {i}") for i, message in enumerate(messages)]
    if not checked or checked[-1]["role"] != "user":
        raise UserError(
            "The conversation does not end with a message of the user, so there is nothing to answer.",
            hint='append {"role": "user", "content": "..."}',
        )
    return checked


def render_chat(tokenizer: Any, messages: str | Sequence[Message]) -> ChatPrompt:
    """Render a conversation with the tokenizer's chat template, up to where the answer begins.

    A template comes with a model and is not trusted: transformers runs it in jinja2's immutable sandbox, which gives it
    neither attributes of Python objects nor files. The sandbox does not limit time or memory: a template that loops
    for ever is not stopped. Control tokens that stand in messages are encoded as ordinary text, so a message cannot
    forge a role; where the roles are plain words (`PLAIN_TEMPLATE`, for a tokenizer without a template), it can.

    Args:
        tokenizer: A transformers tokenizer.
        messages: Text of the user, or messages with "role" (one of `ROLES`) and "content".

    Raises:
        UserError: The messages are no conversation, or the template cannot render them.
    """
    conversation = check_messages(messages)
    template, stop = _template(tokenizer)
    tokens = _apply(
        tokenizer, conversation, template, add_generation_prompt=True, sanitize_control_tokens=True,
        return_dict=False, tokenizer_kwargs={"verbose": False},
    )  # fmt: skip
    ends = {tokenizer.eos_token_id, _end_of_turn(tokenizer, template)} - {None}
    return ChatPrompt(tuple(map(int, tokens)), _parts(tokenizer, tokens), frozenset(map(int, ends)), stop)


def _check_message(message: object, where: str) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise UserError(
            f"A message must be a mapping with a role and a content, not {type(message).__name__}.",
            where=where,
        )
    if set(message) != {"role", "content"}:
        raise UserError(
            f"A message has exactly a role and a content, not {sorted(map(str, message))}.", where=where
        )
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise UserError(f"There is no role {role!r}.", where=where, hint=f"one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise UserError(f"The content must be a text, not {type(content).__name__}.", where=where)
    check_unicode(content, "content", where)
    return {"role": role, "content": content}


def _template(tokenizer: Any) -> tuple[str, tuple[str, ...]]:
    """Return the tokenizer's template, or the plain one, and the stop strings that it needs."""
    if tokenizer.chat_template:
        try:
            return str(tokenizer.get_chat_template()), ()
        except ValueError as error:
            raise UserError(f"The tokenizer's chat template cannot be used: {error}") from error
    begin = "{{ bos_token }}" if getattr(tokenizer, "add_bos_token", False) and tokenizer.bos_token else ""
    return begin + PLAIN_TEMPLATE, PLAIN_STOPS


def _apply(tokenizer: Any, conversation: list[dict[str, str]], template: str, **options: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(conversation, chat_template=template, **options)
    except Exception as error:  # a template may raise whatever it likes
        raise UserError(
            f"The tokenizer's chat template cannot render this conversation: {type(error).__name__}: {error}",
            hint="many templates want user and assistant in turn, and some know no system message",
        ) from error


def _end_of_turn(tokenizer: Any, template: str) -> int | None:
    """Return the token that the template writes after an answer, or `None`."""
    exchange = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
    try:
        tail = str(_apply(tokenizer, exchange, template, tokenize=False)).rpartition(_MARK)[2].lstrip()
    except UserError:
        return None  # of a template that wants more than an exchange; the end of text still ends the answer
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
