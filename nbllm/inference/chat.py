"""Answering a conversation: the decoding loop from a chat's prompt to its answer, token by token."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from nbllm.core.errors import UserError
from nbllm.inference.chat_prompt import ChatPrompt
from nbllm.inference.config import MAX_NEW_TOKENS_OF_CHAT, OF_BEAMS, SamplingConfig
from nbllm.inference.detokenizer import Detokenizer, Receive
from nbllm.inference.engine import decode
from nbllm.inference.generation import Generation
from nbllm.inference.recommended import SETTINGS
from nbllm.inference.sequence import Sequence, make_sequences

if TYPE_CHECKING:
    from nbllm.models.network import CausalNetwork

NUM_ALTERNATIVES = 3
# Where a model's makers recommend nothing. The untouched distribution draws from its unreliable tail in every sentence:
# of 15 plain questions, each asked 4 times, SmolLM2-135M-Instruct answers 25 of 60 right by it, and 40 of 60 by this.
# Colder is no better and repeats itself: by 0.2 and 0.9, as in its card's short example, 39 of 60, and 7 of 16 answers
# of up to 300 tokens have more than a tenth of their runs of 8 tokens twice; by this, none.
# Source: Holtzman et al. 2020, arXiv:1904.09751, section 3.
CAUTIOUS = {"temperature": 0.7, "top_p": 0.95}


@dataclasses.dataclass(frozen=True)
class AnswerToken:
    """A token of an answer, and what else it might have been.

    Attributes:
        text: What it adds to the answer: nothing where a character is not whole yet, or for a control token.
        shown: The token by itself.
        probability: By the model's own distribution, at temperature 1, before any filter; from 0 to 1.
        alternatives: The likeliest other tokens by themselves with their probabilities, the likeliest first.
    """

    text: str
    shown: str
    probability: float
    alternatives: tuple[tuple[str, float], ...]


def chat_config(sampling: Mapping[str, Any], recommended: Mapping[str, Any]) -> SamplingConfig:
    """Return the settings of an answer: up to `MAX_NEW_TOKENS_OF_CHAT` tokens, chosen as is recommended, or `CAUTIOUS`.

    Args:
        sampling: Settings that come before all else.
        recommended: By the model's makers (`LM.sampling`); may be empty. Those of beam search are left out.

    Raises:
        UserError: A setting is unknown, out of range, or of beam search.
    """
    for name in OF_BEAMS:
        if name in sampling:
            raise UserError(
                f"{name} is not for a chat, whose answer is one text, streamed as it is drawn.",
                hint="lm.generate takes it.",
            )
    drawing = {name: value for name, value in recommended.items() if name in SETTINGS}
    return SamplingConfig.from_dict(
        {"max_new_tokens": MAX_NEW_TOKENS_OF_CHAT, **(drawing or CAUTIOUS), **sampling}
    )


def answer(
    model: CausalNetwork,
    tokenizer: Any,
    prompt: ChatPrompt,
    config: SamplingConfig,
    *,
    on_text: Receive | None = None,
    on_token: Callable[[AnswerToken], object] | None = None,
    should_stop: Callable[[], bool] | None = None,
    lock: AbstractContextManager[Any] | None = None,
) -> Generation:
    """Answer a conversation.

    Args:
        model: The decoder.
        tokenizer: Its transformers tokenizer.
        prompt: From `render_chat`; the answer ends with its end tokens and stop strings, too.
        config: How to choose tokens, how many, and when to end.
        on_text: Called with each piece of text that is certain.
        on_token: Called with each token whose text is certain; its probabilities cost a softmax a token.
        should_stop: Asked before each token; a true answer ends the answer ("caller").
        lock: Held while the model is used.

    Returns:
        The answer, as the tokens decode: white space at the ends too.

    Raises:
        UserError: The conversation is longer than the model's positions, or the model's output is not finite.
    """
    limit = model.context_length
    if config.overflow == "stop" and len(prompt.tokens) > limit:
        raise UserError(
            f"The conversation has {len(prompt.tokens):,} tokens; the model has positions for {limit:,}.",
            hint='Begin a new one, shorten it, or let the oldest tokens go: overflow="slide".',
        )
    config = config.replace(stop=(*config.stop, *prompt.stop))
    (sequence,) = make_sequences(
        [list(prompt.tokens)], config, eos_id=tokenizer.eos_token_id, end_ids=prompt.end_ids
    )
    text = Detokenizer(tokenizer, sequence, config, on_text)
    tokens = None if on_token is None else _Tokens(tokenizer, sequence, text, on_token)

    def on_change(sequence: Sequence) -> bool:
        text.catch_up()
        if sequence.stopped_by is not None or text.stop_string is not None:
            text.finish()
        if tokens:
            tokens.give()
        return text.stop_string is not None

    decode(
        model, [sequence], config, on_change=on_change, should_stop=should_stop,
        lock=lock, num_alternatives=0 if tokens is None else NUM_ALTERNATIVES,
    )  # fmt: skip
    text.finish()
    if tokens:
        tokens.give()
    return text.result(prompt.text)


class _Tokens:
    """Gives out the tokens whose text is certain."""

    def __init__(
        self, tokenizer: Any, sequence: Sequence, text: Detokenizer, receive: Callable[[AnswerToken], object]
    ) -> None:
        self._tokenizer, self._sequence, self._text, self._receive = tokenizer, sequence, text, receive
        self._given = 0
        self._begin = 0  # where the next token's text begins

    def give(self) -> None:
        whole = self._text.text
        ended = self._sequence.stopped_by is not None or self._text.stop_string is not None
        while self._given < len(self._text.ends):
            end = self._text.ends[self._given]
            newest = self._given == len(self._text.ends) - 1
            if not ended and (end > len(whole) or (newest and end == self._begin)):
                return  # it may begin a stop string, or a character that the next token makes whole
            if self._begin >= len(whole) and end > self._begin:
                return  # a stop string has cut it off
            chosen = self._sequence.probabilities[self._given]
            piece = whole[self._begin : end]
            self._given, self._begin = self._given + 1, end
            others = tuple((self._shown(token), value) for token, value in chosen.alternatives)
            self._receive(AnswerToken(piece, self._shown(chosen.token), chosen.probability, others))

    def _shown(self, token: int) -> str:
        text = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
        # A vocabulary may be padded: the model knows more tokens than the tokenizer.
        return text or str(self._tokenizer.convert_ids_to_tokens(token) or f"token {token}")
