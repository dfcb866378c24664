"""The tokens of an example, and which of them are trained.

Where an answer begins and ends follows from the template itself: the conversation up to there is rendered and encoded,
and the tokens that it shares with the whole are before that place. A token that reaches over the beginning of an answer
belongs to the answer. Nothing is looked for among the tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import DataError
from nbllm.data.chat_template import render
from nbllm.data.document_bounds import document_bounds
from nbllm.data.encoding import added_before, encode_text
from nbllm.data.sources.chats import Message
from nbllm.finetuning.examples import Example
from nbllm.inference.chat_prompt import PLAIN_TEMPLATE

TRAIN_ON = ("assistant", "answer", "everything")


@dataclasses.dataclass(frozen=True)
class TokenizedExample:
    """An example as the network reads it.

    Attributes:
        tokens: (token,) ids.
        trained: (token,) whether each is to be predicted.
    """

    tokens: NDArray[np.int64]
    trained: NDArray[np.bool_]


def tokenize(tokenizer: Any, example: Example, *, train_on: str = "assistant") -> TokenizedExample:
    """Return the tokens of an example, and which are trained.

    Args:
        tokenizer: A transformers tokenizer; without a chat template, roles are plain words.
        example: The example.
        train_on: "assistant": what the assistant says, in all turns, and the end of each; "answer": in the last turn
            alone; "everything". Of a prompt and its completion the completion is the answer.

    Raises:
        DataError: The template cannot render the conversation, or renders its beginning otherwise than the whole.
    """
    if example.messages:
        made = _of_conversation(tokenizer, example.messages, train_on)
    else:
        made = _of_completion(tokenizer, example)
    if train_on == "everything":
        return TokenizedExample(made.tokens, np.ones(len(made.tokens), bool))
    return made


def _of_completion(tokenizer: Any, example: Example) -> TokenizedExample:
    bounds = document_bounds(tokenizer)
    tokens = encode_text(tokenizer, example.prompt + example.completion)
    begin = _shared(encode_text(tokenizer, example.prompt), tokens) if example.prompt else 0
    start, end = list(bounds.start_tokens), [] if bounds.end is None else [bounds.end]
    trained = np.zeros(len(start) + len(tokens) + len(end), bool)
    trained[len(start) + begin :] = True
    return TokenizedExample(np.array([*start, *tokens, *end], np.int64), trained)


def _of_conversation(tokenizer: Any, messages: Sequence[Message], train_on: str) -> TokenizedExample:
    template = str(tokenizer.get_chat_template()) if tokenizer.chat_template else PLAIN_TEMPLATE
    before = [] if tokenizer.chat_template else added_before(tokenizer)
    try:
        text = render(tokenizer, messages, template=template)
        tokens = _encode(tokenizer, text)
        trained = np.zeros(len(tokens), bool)
        turns = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        for turn in turns[-1:] if train_on == "answer" else turns:
            prompt = render(tokenizer, messages[:turn], template=template, add_generation_prompt=True)
            answered = text if turn + 1 == len(messages) else render(
                tokenizer, messages[: turn + 1], template=template
            )  # fmt: skip
            if tokenizer.chat_template:
                answered = answered.rstrip()  # what a template writes between two turns
            if not (text.startswith(answered) and answered.startswith(prompt)):
                raise DataError(
                    "The chat template renders the beginning of a conversation otherwise than the whole, so it "
                    "does not say where answers are.",
                    hint='Train on the last answer, train_on="answer", or on "everything".',
                )
            begin, end = (_shared(_encode(tokenizer, part), tokens) for part in (prompt, answered))
            trained[begin:end] = True
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"The conversation cannot be rendered: {error}") from error
    return TokenizedExample(
        np.array([*before, *tokens], np.int64), np.concatenate([np.zeros(len(before), bool), trained])
    )


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False, sanitize_control_tokens=True, verbose=False)["input_ids"]
    return [int(token) for token in ids]


def _shared(beginning: Sequence[int], whole: Sequence[int]) -> int:
    """Return with how many of the same tokens both begin."""
    pairs = enumerate(zip(beginning, whole, strict=False))
    return next((place for place, (one, two) in pairs if one != two), min(len(beginning), len(whole)))
