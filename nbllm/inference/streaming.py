"""From tokens to text as they come: whole characters only, and never the beginning of a stop string."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from nbllm.inference.token_bytes import TokenBytes

_INCOMPLETE = (
    "\N{REPLACEMENT CHARACTER}"  # what a decoder puts for bytes that are not, or not yet, a character
)
# A model may write control codes, which a terminal or a cell obeys: carriage return would overwrite the line,
# escape move the cursor. Printed, they are shown as replacement characters; the result keeps them.
_CONTROLS = {code: _INCOMPLETE for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}
_CONTEXT = 5  # tokens decoded before the new ones, so that a word piece is decoded as the middle of a text


class StreamedText(str):
    """A piece of text as a stream receives it.

    Attributes:
        prompt_index: Which of the prompts it continues, from 0.
    """

    prompt_index: int

    def __new__(cls, text: str, prompt_index: int = 0) -> StreamedText:
        """Make a piece of the text that continues prompt `prompt_index`."""
        piece = super().__new__(cls, text)
        piece.prompt_index = prompt_index
        return piece


class TokenText:
    """Decodes one growing list of tokens; what it has given out never changes.

    A token may hold a part of a character, which decodes to a replacement character and waits for the next token. One
    that stands in the text, and one for bytes that can no longer become a character, do not wait. Only a short window
    of tokens is decoded each time: the whole costs linear time.

    Args:
        tokenizer: A transformers tokenizer.
        prompt: The tokens before the first one to decode: some tokenizers decode a first token differently.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int] = ()) -> None:
        self._tokenizer, self._bytes = tokenizer, TokenBytes(tokenizer)
        self._window = list(prompt[-_CONTEXT:])
        self._known = len(self._window)  # tokens of the window whose text was given out whole
        self._base = self._decode(self._window)
        self._given = 0  # characters of the window's text, beyond the base, that were given out

    def feed(self, token: int) -> str:
        """Take the next token; return the text that is certain now and was not before."""
        self._window.append(token)
        text = self._decode(self._window)[len(self._base) :]
        certain = text
        if text.endswith(_INCOMPLETE) and self._bytes.end_inside_character(self._window):
            certain = text.rstrip(_INCOMPLETE)
        piece = certain[self._given :]
        self._given = max(self._given, len(certain))
        if text and len(certain) == len(text):
            self._window = self._window[self._known :]
            self._known = len(self._window)
            self._base = self._decode(self._window)
            self._given = 0
        return piece

    def finish(self) -> str:
        """Return what was held back: an incomplete character becomes a replacement character."""
        piece = self._decode(self._window)[len(self._base) + self._given :]
        self._given += len(piece)
        return piece

    def _decode(self, tokens: list[int]) -> str:
        return str(
            self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )


class StopScanner:
    """Finds the first stop string in text that comes in pieces.

    The stop string that is complete first ends the text (of two that are complete at the same character, the
    longer), so the result does not depend on where the pieces are cut.

    Args:
        stops: Strings, none empty.

    Attributes:
        found: The stop string that ended the text, or `None`.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty string would always match"
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def feed(self, piece: str) -> str:
        """Take a piece; return the text that no stop string can claim any more."""
        if self.found is not None:
            return ""
        if not self._stops:
            return piece
        text = self._held + piece
        hits = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if hits:
            _, at, self.found = min(hits)
            self._held = ""
            return text[:at]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """Return what was held back: the text is over, so it begins no stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class Printer:
    """Prints streamed texts to standard output, one after another in the order of their prompts.

    The text whose turn it is appears as it comes; the pieces of later ones wait. Control codes are shown, not
    obeyed.
    """

    def __init__(self) -> None:
        self._turn = 0
        self._waiting: dict[int, str] = {}
        self._ended: set[int] = set()

    def receive(self, piece: StreamedText) -> None:
        """Print a piece, or keep it until its text's turn."""
        if piece.prompt_index == self._turn:
            self._write(piece)
        else:
            self._waiting[piece.prompt_index] = self._waiting.get(piece.prompt_index, "") + piece

    def end(self, index: int) -> None:
        """Take note that a text is whole; when it is its turn, close its line and go on to the next text."""
        self._ended.add(index)
        while self._turn in self._ended:
            self._write("\n")
            self._turn += 1
            self._write(self._waiting.pop(self._turn, ""))

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text.translate(_CONTROLS))
        sys.stdout.flush()
