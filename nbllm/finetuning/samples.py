"""What a network reads of an example and what it is to predict, for decoders and for encoder-decoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import DataError
from nbllm.data.sources.chats import Message, plain_text
from nbllm.finetuning.examples import Example
from nbllm.finetuning.tokens import TokenizedExample
from nbllm.inference.text import encode_source
from nbllm.objectives.base import IGNORED


class Sample(NamedTuple):
    """An example as tokens.

    Attributes:
        inputs: (token,) what is read.
        targets: (target,) what is to be predicted, -100 where nothing is: the token after each input, or of an
            encoder-decoder another text.
        weights: (target,) what each target counts.
    """

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    weights: NDArray[np.float32]


def sample_of(made: TokenizedExample) -> Sample:
    """Return the sample of a decoder, which predicts each token from those before it."""
    targets = np.where(made.trained[1:], made.tokens[1:], IGNORED)
    return Sample(made.tokens[:-1], targets, np.where(made.trained[1:], made.weights[1:], np.float32(1)))


def samples_of_pairs(tokenizer: Any, example: Example, *, train_on: str = "assistant") -> list[Sample]:
    """Return the samples of an encoder-decoder, which reads a question and predicts the answer, end token included.

    The question is the prompt, or what the user says; of a longer conversation all that came before the answer, with
    the roles as plain words. Chat templates are made for decoders and are not used.

    Args:
        tokenizer: A transformers tokenizer.
        example: The example.
        train_on: "assistant": each turn of the assistant is a sample; "answer": the last one alone.

    Raises:
        DataError: There is no question, all is to be trained, or parts of an answer have weights of their own.
    """
    if train_on == "everything":
        raise DataError("An encoder-decoder is trained on answers; what it reads is not predicted.")
    if example.spans:
        raise DataError("Weights of parts of an answer are for decoders.")
    pairs: list[tuple[str, str, float]] = []
    if example.messages:
        turns = [n for n, message in enumerate(example.messages) if message["role"] == "assistant"]
        for turn in turns[-1:] if train_on == "answer" else turns:
            asked = _question(example.messages[:turn])
            weight = example.turn_weights[turn] if example.turn_weights else 1.0
            pairs.append((asked, example.messages[turn]["content"], weight))
    else:
        pairs.append((example.prompt, example.completion, 1.0))
    samples = []
    for asked, answer, weight in pairs:
        if not asked.strip():
            raise DataError("There is no question for an encoder to read.")
        weight *= example.weight
        if weight == 0 or not answer.strip():
            continue
        inputs, targets = (np.array(encode_source(tokenizer, text), np.int64) for text in (asked, answer))
        samples.append(Sample(inputs, targets, np.full(len(targets), weight, np.float32)))
    if not samples:
        raise DataError("Nothing of the example is to be trained.")
    return samples


def _question(before: Sequence[Message]) -> str:
    """Return what an encoder reads of the messages before an answer."""
    only_question = len(before) == 1 and before[0]["role"] == "user"
    return before[0]["content"] if only_question else plain_text(before)
