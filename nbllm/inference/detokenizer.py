"""From a sequence's tokens to its text while it is generated, up to the first stop string."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nbllm.inference.config import SamplingConfig
from nbllm.inference.generation import Generation
from nbllm.inference.sequence import Sequence
from nbllm.inference.streaming import StopScanner, StreamedText, TokenText
from nbllm.inference.token_bytes import special_tokens

Receive = Callable[[StreamedText], object]


class Detokenizer:
    """Decodes one sequence as it is generated, and streams the text that can no longer change.

    Args:
        tokenizer: A transformers tokenizer.
        sequence: Its tokens are read as they come.
        config: Its stop strings.
        receive: Called with each piece of text that can no longer change.
        received: Characters that were received before.

    Attributes:
        text: What can no longer change.
        ends: For each token that was read, where its text ends: in the whole text, which a stop string may cut.
    """

    def __init__(
        self,
        tokenizer: Any,
        sequence: Sequence,
        config: SamplingConfig,
        receive: Receive | None,
        received: int = 0,
    ) -> None:
        self._arguments = (tokenizer, sequence, config, receive)
        self.sequence, self._receive, self._received = sequence, receive, received
        self._decoder, self._scanner = TokenText(tokenizer, sequence.prompt), StopScanner(config.stop)
        # A special token that is a stop string is found as a token: its text is left out.
        self._stop_tokens = special_tokens(tokenizer, config.stop) if config.stop else {}
        self.text, self._finished = "", False
        self.ends: list[int] = []

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text, or `None`."""
        return self._scanner.found

    def catch_up(self) -> None:
        """Decode the sequence's new tokens."""
        for token in self.sequence.tokens[len(self.ends) :]:
            piece = self._decoder.feed(token)
            self.ends.append((self.ends[-1] if self.ends else 0) + len(piece))
            self._give(self._scanner.feed(piece))
            if token in self._stop_tokens and self.stop_string is None:
                self._give_rest()
                self._scanner.found = self.stop_string or self._stop_tokens[token]

    def finish(self) -> None:
        """Give out the text that was held back: no more tokens will come."""
        if not self._finished:
            self._finished = True
            self.catch_up()
            self._give_rest()

    def _give_rest(self) -> None:
        """Give out the text that was held back."""
        rest = self._decoder.finish()
        if rest:
            self.ends[-1] += len(rest)
        self._give(self._scanner.feed(rest) + self._scanner.finish())

    def restarted(self) -> Detokenizer:
        """Return one that has decoded all tokens from the first again; the stream receives only what it has not."""
        fresh = Detokenizer(*self._arguments, received=self._received)
        fresh.catch_up()
        return fresh

    def _give(self, piece: str) -> None:
        self.text += piece
        new = self.text[self._received :]
        if new and self._receive is not None:
            self._received = len(self.text)  # before the call: an interrupt in it must not print it twice
            self._receive(StreamedText(new, self.sequence.index))

    def result(self, prompt: str) -> Generation:
        """Return the text with what is known about it."""
        sequence = self.sequence
        return Generation(
            self.text,
            prompt=prompt,
            continues=sequence.source is None,
            tokens=sequence.tokens,
            stopped_by="stop" if self.stop_string is not None else sequence.stopped_by,
            stop_string=self.stop_string,
            seed=sequence.seed,
            score=sequence.score,
            seconds=sequence.seconds,
        )
