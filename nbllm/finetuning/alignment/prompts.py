"""Prompts that a policy answers: in the layouts that data sets have, and as rows that a run draws.

| layout | fields |
|---|---|
| text | a string, or a mapping with `prompt` or `text` |
| conversation | a list of messages, or a mapping with `prompt`, `messages` or `conversations` |
| instructions (Alpaca) | `instruction`, perhaps `input` |

A conversation is answered after its last message of somebody else than the assistant; an answer that it already ends
with is kept as the field `completion`. Every other field, such as `answer` of a set of exercises, is kept for the
reward function.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import DataError, UserError
from nbllm.core.progress import progress
from nbllm.data.chat_template import render
from nbllm.data.document_bounds import document_bounds
from nbllm.data.encoding import added_before
from nbllm.data.sample_store import SampleStore, write_samples
from nbllm.data.sources.chats import COLUMNS, Message, is_conversation, read_messages
from nbllm.finetuning.rows import rows_of
from nbllm.inference.chat_prompt import PLAIN_TEMPLATE, render_chat
from nbllm.inference.messages import ROLES
from nbllm.inference.text import encode_prompt

NO_TOKEN = -1  # in a row of end tokens that are fewer than another prompt's


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What a policy is to answer.

    Attributes:
        content: A text, or the messages of a conversation.
        fields: The other fields of its example, as JSON has them.
    """

    content: str | list[Message]
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def text(self) -> str:
        """The text, or the last message's."""
        return self.content if isinstance(self.content, str) else self.content[-1]["content"]


def read_prompt(value: object) -> Prompt:
    """Return the prompt that a value holds, in one of the layouts.

    Raises:
        DataError: It has none of them, an unknown role, or no question.
    """
    if isinstance(value, str):
        return _text(value, {})
    if is_conversation(value):
        return _conversation(value, {})
    if not isinstance(value, Mapping):
        raise DataError(f"A prompt is a text, messages or a mapping, not {type(value).__name__}.")
    fields = {str(name): each for name, each in value.items() if each is not None}
    for name in ("prompt", *COLUMNS):
        if is_conversation(fields.get(name)):
            return _conversation(fields.pop(name), fields)
    for name in ("prompt", "text"):
        if isinstance(fields.get(name), str):
            return _text(fields.pop(name), fields)
    if isinstance(fields.get("instruction"), str):
        asked = [fields.pop("instruction"), fields.pop("input", "")]
        question = "\n\n".join(each for each in asked if isinstance(each, str) and each)
        return _conversation([{"role": "user", "content": question}], fields)
    raise DataError(
        f"The example has the fields {', '.join(sorted(fields)) or 'none'}; none of the known layouts.",
        hint="prompt, messages, text, or instruction and input.",
    )


def _text(value: str, fields: Mapping[str, Any]) -> Prompt:
    if not value.strip():
        raise DataError("The prompt is empty.")
    return Prompt(value, _plain(fields))


def _conversation(value: Any, fields: Mapping[str, Any]) -> Prompt:
    messages = read_messages(value)
    if messages is None:
        raise DataError("A message of the conversation holds no text.")
    for message in messages:
        if message["role"] not in ROLES:
            raise DataError(f"There is no role {message['role']!r}.", hint=f"One of {', '.join(ROLES)}.")
    own = dict(fields)
    while messages and messages[-1]["role"] == "assistant":
        own.setdefault("completion", messages.pop()["content"])
    if not messages or not messages[-1]["content"].strip():
        raise DataError("The conversation asks nothing.")
    return Prompt(messages, _plain(own))


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields as JSON holds them; what it cannot hold is kept as text."""
    made: dict[str, Any] = json.loads(json.dumps(dict(fields), default=str))
    return made


class PromptEncoder:
    """From prompts to the tokens that a model reads.

    Args:
        tokenizer: A transformers tokenizer; without a chat template, roles are plain words.
        end_tokens: Tokens that end an answer besides the tokenizer's own.
    """

    def __init__(self, tokenizer: Any, end_tokens: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        own = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self._ends = tuple(dict.fromkeys([*own, *document_bounds(tokenizer).end_tokens, *end_tokens]))
        self._ends_of_turn: tuple[int, ...] | None = None

    def encode(self, prompt: Prompt) -> tuple[list[int], tuple[int, ...]]:
        """Return a prompt's tokens, up to where the answer begins, and the tokens that end an answer to it.

        Raises:
            DataError: The template cannot render the conversation.
        """
        if isinstance(prompt.content, str):
            return encode_prompt(self.tokenizer, prompt.content), self._ends
        tokenizer = self.tokenizer
        try:
            if self._ends_of_turn is None:  # asked of the template once, which takes several renderings
                rendered = render_chat(tokenizer, prompt.content, end_tokens=self._ends)
                self._ends_of_turn = tuple(sorted(rendered.end_ids))
            text = render(
                tokenizer, prompt.content, add_generation_prompt=True,
                template=str(tokenizer.get_chat_template()) if tokenizer.chat_template else PLAIN_TEMPLATE,
            )  # fmt: skip
        except (UserError, ValueError) as error:
            raise DataError(f"The conversation cannot be rendered: {error}") from error
        ids = tokenizer(text, add_special_tokens=False, sanitize_control_tokens=True, verbose=False)[
            "input_ids"
        ]
        before = [] if tokenizer.chat_template else added_before(tokenizer)
        return [*before, *map(int, ids)], self._ends_of_turn


@dataclasses.dataclass(frozen=True)
class PreparedPrompts:
    """Prompts, ready to be drawn.

    Attributes:
        store: Their rows.
        left_out: How many were left out, by the reason.
    """

    store: SampleStore
    left_out: dict[str, int]

    def __repr__(self) -> str:
        lengths = self.store.columns["lengths"]
        parts = [f"{len(self.store):,} prompts of {int(lengths.min())} to {int(lengths.max())} tokens"]
        parts += [f"{count:,} left out: {reason}" for reason, count in self.left_out.items()]
        return "\n".join(parts)


def prepare_prompts(
    data: Any, tokenizer: Any, *, end_tokens: Sequence[int], length: int, max_new_tokens: int
) -> PreparedPrompts:
    """Encode prompts into rows.

    Args:
        data: Prompts in the layouts above: a list, a data set, a JSON file, or what `nbllm.data.load` takes.
        tokenizer: A transformers tokenizer.
        end_tokens: Tokens that end an answer besides the tokenizer's own.
        length: Tokens of a prompt with its answer; a prompt that leaves no space for the answer is left out.
        max_new_tokens: Of an answer.

    Raises:
        DataError: Nothing is left; the reasons are counted.
    """
    encoder = PromptEncoder(tokenizer, end_tokens)
    left_out: collections.Counter[str] = collections.Counter()
    kept: list[tuple[Prompt, list[int], tuple[int, ...]]] = []
    rows = rows_of(data)
    total = len(rows) if isinstance(rows, Sized) else 0
    with progress("encoding the prompts", total, "prompts") as bar:
        for value in rows:
            bar.update(1)
            try:
                prompt = read_prompt(value)
                tokens, ends = encoder.encode(prompt)
            except DataError as error:
                left_out[error.what] += 1
                continue
            if not tokens or len(tokens) + max_new_tokens > length:
                left_out[f"no space for {max_new_tokens} tokens of an answer within {length}"] += 1
                continue
            kept.append((prompt, tokens, ends))
    if not kept:
        reasons = "; ".join(f"{count:,} of them: {reason}" for reason, count in left_out.items())
        raise DataError("There is no prompt to answer.", hint=reasons or "Give prompts: there are none.")
    store = write_samples(
        columns_of(kept),
        row_length=length,
        num_examples=len(kept),
        num_bytes=sum(len(prompt.text.encode(errors="replace")) for prompt, _, _ in kept),
        vocab_size=len(tokenizer),
    )
    return PreparedPrompts(store, dict(left_out))


def columns_of(kept: Sequence[tuple[Prompt, list[int], tuple[int, ...]]]) -> dict[str, NDArray[np.int32]]:
    """Return prompts as columns: "tokens" and "lengths", "ends", and "records", their JSON as bytes.

    Args:
        kept: Each prompt with its tokens and the tokens that end its answer.
    """
    records = [json.dumps([prompt.content, dict(prompt.fields)]).encode() for prompt, _, _ in kept]
    longest = -(-max(map(len, records)) // 4) * 4  # whole words of four bytes; JSON holds no zero byte
    packed = np.frombuffer(b"".join(record.ljust(longest, b"\0") for record in records), np.int32)
    return {
        "tokens": _padded([tokens for _, tokens, _ in kept], 0),
        "lengths": np.array([len(tokens) for _, tokens, _ in kept], np.int32),
        "ends": _padded([ends for _, _, ends in kept], NO_TOKEN),
        "records": packed.reshape(len(kept), -1),
    }


def prompts_in(rows: Mapping[str, NDArray[Any]]) -> list[tuple[Prompt, list[int], tuple[int, ...]]]:
    """Return what `columns_of` was given, of the rows that were drawn."""
    found = []
    for tokens, length, ends, record in zip(
        rows["tokens"], rows["lengths"], rows["ends"], rows["records"], strict=True
    ):
        content, fields = json.loads(record.astype(np.int32).tobytes().rstrip(b"\0"))
        own = tuple(int(token) for token in ends if token != NO_TOKEN)
        found.append((Prompt(content, fields), tokens[:length].tolist(), own))
    return found


def _padded(rows: Sequence[Sequence[int]], value: int) -> NDArray[np.int32]:
    out = np.full((len(rows), max(1, *map(len, rows))), value, np.int32)
    for place, row in enumerate(rows):
        out[place, : len(row)] = row
    return out
