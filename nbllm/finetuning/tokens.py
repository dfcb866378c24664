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
from nbllm.finetuning.examples import Example, Span
from nbllm.inference.chat_prompt import PLAIN_TEMPLATE

TRAIN_ON = ("assistant", "answer", "everything")


@dataclasses.dataclass(frozen=True)
class TokenizedExample:
    """An example as the network reads it.

    Attributes:
        tokens: (token,) ids.
        trained: (token,) whether each is to be predicted.
        weights: (token,) what each counts in the loss, where it is trained.
    """

    tokens: NDArray[np.int64]
    trained: NDArray[np.bool_]
    weights: NDArray[np.float32]


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
    made = (_of_conversation if example.messages else _of_completion)(tokenizer, example, train_on)
    trained = np.ones(len(made.tokens), bool) if train_on == "everything" else made.trained
    weights = made.weights * np.float32(example.weight)
    return TokenizedExample(made.tokens, trained & (weights > 0), weights)


def _of_completion(tokenizer: Any, example: Example, train_on: str) -> TokenizedExample:
    bounds = document_bounds(tokenizer)
    text = example.prompt + example.completion
    tokens = encode_text(tokenizer, text)
    begin = _shared(encode_text(tokenizer, example.prompt), tokens) if example.prompt else 0
    # A prompt begins as `generate` begins it; a text alone as documents do, so that its first token is learnt.
    start = added_before(tokenizer) if example.prompt else list(bounds.start_tokens)
    end = [] if bounds.end is None else [bounds.end]
    trained = np.zeros(len(start) + len(tokens) + len(end), bool)
    trained[len(start) + begin :] = True
    weights = np.ones(len(trained), np.float32)
    for span in example.spans:
        places = (
            len(example.prompt) + min(place, len(example.completion)) for place in (span.start, span.stop)
        )
        first, last = (_shared(encode_text(tokenizer, text[:place]), tokens) for place in places)
        weights[len(start) + first : len(start) + last] *= span.weight
    return TokenizedExample(np.array([*start, *tokens, *end], np.int64), trained, weights)


def _of_conversation(tokenizer: Any, example: Example, train_on: str) -> TokenizedExample:
    messages = example.messages
    template = str(tokenizer.get_chat_template()) if tokenizer.chat_template else PLAIN_TEMPLATE
    before = [] if tokenizer.chat_template else added_before(tokenizer)
    try:
        text = render(tokenizer, messages, template=template)
        tokens = _encode(tokenizer, text)
        trained, weights = np.zeros(len(tokens), bool), np.ones(len(tokens), np.float32)
        turns = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        for turn in turns[-1:] if train_on == "answer" else turns:
            if train_on != "everything" and example.turn_weights and not example.turn_weights[turn]:
                continue  # where an answer that counts nothing lies need not be rendered
            prompt, answered = _around_answer(tokenizer, messages, turn, text, template)
            begin, end = (_shared(_encode(tokenizer, part), tokens) for part in (prompt, answered))
            trained[begin:end] = True
            if example.turn_weights:
                weights[begin:end] = example.turn_weights[turn]
            for span in (each for each in example.spans if each.message == turn):
                bounds = _place(text, messages[turn]["content"], span, len(prompt), len(answered))
                first, last = (_shared(_encode(tokenizer, text[:place]), tokens) for place in bounds)
                weights[first:last] *= span.weight
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"The conversation cannot be rendered: {error}") from error
    more = len(before)
    return TokenizedExample(
        np.array([*before, *tokens], np.int64), np.pad(trained, (more, 0)), np.pad(weights, (more, 0))
    )


def _around_answer(
    tokenizer: Any, messages: Sequence[Message], turn: int, text: str, template: str
) -> tuple[str, str]:
    """Return the rendered conversation `text` up to where a turn's answer begins, and up to where it ends."""
    last = turn + 1 == len(messages)
    answered = text if last else render(tokenizer, messages[: turn + 1], template=template)
    if tokenizer.chat_template:
        answered = answered.rstrip()  # what a template writes between two turns
    if turn:
        prompt = render(tokenizer, messages[:turn], template=template, add_generation_prompt=True)
    else:  # nothing was said before, which no template renders
        prompt = answered[: max(0, answered.rfind(messages[0]["content"].strip()))]
    if not (text.startswith(answered) and answered.startswith(prompt)):
        raise DataError(
            "The chat template renders the beginning of a conversation otherwise than the whole, so it does not say "
            "where answers are.",
            hint='Train on the last answer, train_on="answer", or on "everything".',
        )
    return prompt, answered


def _place(text: str, content: str, span: Span, begin: int, end: int) -> tuple[int, int]:
    """Return where a span of a message lies in the rendered text, whose turn lasts from `begin` to `end`."""
    at = text.find(content.strip(), begin, end)
    if at < 0:
        raise DataError("The chat template changes what a message says, so its weights have no place.")
    at -= len(content) - len(content.lstrip())
    return max(begin, at + min(span.start, len(content))), min(end, at + min(span.stop, len(content)))


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False, sanitize_control_tokens=True, verbose=False)["input_ids"]
    return [int(token) for token in ids]


def _shared(beginning: Sequence[int], whole: Sequence[int]) -> int:
    """Return with how many of the same tokens both begin."""
    pairs = enumerate(zip(beginning, whole, strict=False))
    return next((place for place, (one, two) in pairs if one != two), min(len(beginning), len(whole)))
