"""An answer that is read while it is written."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator

from nbllm.core.terminal import visible
from nbllm.inference.chat_prompt import ChatPrompt
from nbllm.inference.generation import ENDINGS, Generation
from nbllm.inference.streaming import StreamedText

# Answers the prompt: given where pieces go and what tells it to stop.
Answer = Callable[[Callable[[StreamedText], object], Callable[[], bool]], Generation]


class ChatStream:
    """The answer of a chat: iterating gives its text piece by piece, and a cell that shows it prints it as it comes.

    It is generated once, in a thread of its own, from when it is first read. An interrupt (the notebook's stop button,
    Ctrl-C) ends it, and so does leaving the iteration early; the text so far is kept.

    Args:
        prompt: The conversation to answer.
        answer: Generates the answer.

    Attributes:
        prompt: The conversation as the model reads it: `prompt.text` is the rendered template.
    """

    def __init__(self, prompt: ChatPrompt, answer: Answer) -> None:
        self.prompt = prompt
        # None once it is called: it holds the model, and what a cell showed is kept in Out.
        self._answer: Answer | None = answer
        self._pieces: list[str] = []
        self._result: Generation | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._interrupted = False
        self._changed = threading.Condition()

    def __iter__(self) -> Iterator[str]:
        """Yield the text in pieces as they come.

        Raises:
            UserError: The conversation is longer than the model's positions, or the model's output is not finite.
        """
        self._begin()
        given = 0
        try:
            while new := self._wait_beyond(given):
                given += len(new)
                yield from new
        finally:
            self._stop.set()  # of no effect unless the reader has left early
        if self._error is not None:
            raise self._error

    @property
    def result(self) -> Generation:
        """The whole answer, a `str` that also tells how it came about; waits for its end.

        Raises:
            UserError: As iterating.
        """
        for _ in self:
            pass
        assert self._result is not None
        if self._interrupted and self._result.stopped_by == "caller":
            self._result.stopped_by = "interrupt"
        return self._result

    @property
    def text(self) -> str:
        """The answer without white space around it; waits for its end."""
        return str(self.result).strip()

    @property
    def message(self) -> dict[str, str]:
        """The answer as a message to append to the conversation; waits for its end.

        Where the conversation ended with the beginning of the answer, it is the whole of it and replaces that message.
        """
        return {"role": "assistant", "content": f"{self.prompt.begun}{self.result}".strip()}

    @property
    def tokens(self) -> list[int]:
        """The answer's tokens, without the end token; waits for its end."""
        return self.result.tokens

    @property
    def seconds(self) -> float:
        """Wall time to the last token, the reading of the prompt included; waits for the end."""
        return self.result.seconds

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second of wall time; waits for the end."""
        return self.result.tokens_per_second

    @property
    def stopped_by(self) -> str:
        """Why the answer ended, a key of `nbllm.inference.generation.ENDINGS`; waits for the end."""
        return self.result.stopped_by

    def stop(self) -> None:
        """End the answer before its next token."""
        self._stop.set()

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        if self._result is not None:
            return f"<Answer of {len(self._result.tokens)} tokens: {str(self._result).strip()!r}>"
        return f"<Answer to a prompt of {len(self.prompt.tokens)} tokens, {self._state()}>"

    def _ipython_display_(self) -> None:
        """Show the text as it comes, then how it came about."""
        begun = False
        for piece in self:
            shown = piece if begun else piece.lstrip()
            begun = begun or bool(shown)
            sys.stdout.write(visible(shown))
            sys.stdout.flush()
        made = self.result
        facts = (
            f"{len(made.tokens)} tokens, {made.tokens_per_second:,.0f} a second; {ENDINGS[made.stopped_by]}"
        )
        sys.stdout.write(f"\n[{facts}]\n")

    def _state(self) -> str:
        return "not begun" if self._thread is None else "failed" if self._error else "being written"

    def _begin(self) -> None:
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._write, name="chat answer", daemon=True)
                self._thread.start()

    def _write(self) -> None:
        answer, self._answer = self._answer, None
        assert answer is not None
        try:
            self._result = answer(self._receive, self._stop.is_set)
        except BaseException as error:  # raised where the answer is read
            self._error = error
        finally:
            with self._changed:
                self._changed.notify_all()

    def _receive(self, piece: StreamedText) -> None:
        with self._changed:
            self._pieces.append(str(piece))
            self._changed.notify_all()

    def _wait_beyond(self, given: int) -> list[str]:
        """Return the pieces after the first `given`, at least one unless the answer has ended."""
        while True:
            try:
                with self._changed:
                    self._changed.wait_for(
                        lambda: (
                            len(self._pieces) > given or self._result is not None or self._error is not None
                        )
                    )
                    return self._pieces[given:]
            except KeyboardInterrupt:
                self._interrupted = True
                self._stop.set()
