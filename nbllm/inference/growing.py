"""The text of one sequence while it grows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nbllm.inference.config import SamplingConfig
from nbllm.inference.engine import Sequence
from nbllm.inference.generation import Generation
from nbllm.inference.streaming import StopScanner, StreamedText, TokenText

Receive = Callable[[StreamedText], object]


class GrowingText:
    """The text of one sequence as it grows, and how much of it the stream has received.

    Args:
        tokenizer: A transformers tokenizer.
        row: The sequence; its tokens are read as they come.
        config: Its stop strings.
        receive: Called with each piece of text that is certain.
        received: Characters that were received before.

    Attributes:
        text: What is certain now.
        ends: For each token that was read, where its text ends: in the whole text, which a stop string may cut.
    """

    def __init__(
        self,
        tokenizer: Any,
        row: Sequence,
        config: SamplingConfig,
        receive: Receive | None,
        received: int = 0,
    ) -> None:
        self._parts = (tokenizer, row, config, receive)
        self.row, self._receive, self._received = row, receive, received
        self._decoder, self._scanner = TokenText(tokenizer, row.prompt), StopScanner(config.stop)
        self.text, self._finished = "", False
        self.ends: list[int] = []

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text, or `None`."""
        return self._scanner.found

    def catch_up(self) -> None:
        """Take the row's new tokens and give out the text that is certain now."""
        for token in self.row.tokens[len(self.ends) :]:
            piece = self._decoder.feed(token)
            self.ends.append((self.ends[-1] if self.ends else 0) + len(piece))
            self._give(self._scanner.feed(piece))

    def finish(self) -> None:
        """Give out what was held back: no more tokens will come."""
        if not self._finished:
            self._finished = True
            self.catch_up()
            rest = self._decoder.finish()
            if rest:
                self.ends[-1] += len(rest)
            self._give(self._scanner.feed(rest) + self._scanner.finish())

    def again(self) -> GrowingText:
        """Return the same text read anew from the tokens; the stream receives only what it has not."""
        fresh = GrowingText(*self._parts, received=self._received)
        fresh.catch_up()
        return fresh

    def _give(self, piece: str) -> None:
        self.text += piece
        new = self.text[self._received :]
        if new and self._receive is not None:
            self._received = len(self.text)  # before the call: an interrupt in it must not print it twice
            self._receive(StreamedText(new, self.row.index))

    def result(self, prompt: str) -> Generation:
        """Return the text with what is known of it."""
        row = self.row
        return Generation(
            self.text,
            prompt=prompt,
            tokens=row.tokens,
            stopped_by="stop" if self.stop_string is not None else row.stopped_by,
            stop_string=self.stop_string,
            seed=row.seed,
            seconds=row.seconds,
        )
