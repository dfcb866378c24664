"""Guessing what a text goes on with from what it has said before: quotations, names, code, lists, loops."""

from __future__ import annotations

from collections.abc import Iterable

_LENGTHS = (3, 2)  # of the ends that are looked up, the surer first
_FEW, MANY = 2, 7  # tokens of a guess, at first and after one that came true
_LONGEST_PAUSE = 32  # tokens


class Lookup:
    """Guesses the next tokens of a growing text; whoever reads them tells in one pass how far the guess holds.

    A wrong guess costs a little, so each one doubles the pause before the next; a right one ends it.

    Args:
        tokens: The text so far.

    Source: Yang et al. 2023, "Inference with Reference", arXiv:2304.04487; Saxena 2023, "Prompt Lookup Decoding".
    """

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # where a text last went on after so many tokens
        self._guess: list[int] = []
        self._begun = False  # whether some of the guess has come true
        self._length, self._pause, self._wait = _FEW, 1, 0
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> bool:
        """Let the text go on with a token; return whether it is the next one of the guess."""
        place = len(self._tokens)
        for length in _LENGTHS:
            if place >= length:
                self._after[tuple(self._tokens[place - length :])] = place
        self._tokens.append(token)
        if not self._guess:
            return False
        if self._guess.pop(0) == token:
            self._begun, self._pause = True, 1
            if not self._guess:
                self._length = MANY
            return True
        if not self._begun:
            self._pause = self._wait = min(2 * self._pause, _LONGEST_PAUSE)
        self._guess, self._length = [], _FEW
        return False

    def guess(self, most: int) -> list[int]:
        """Return at most so many tokens that may follow; none where nothing like the text's end was there before."""
        self._guess, self._begun = [], False
        if self._wait > 0:
            self._wait -= 1
            return []
        for length in _LENGTHS:
            place = self._after.get(tuple(self._tokens[-length:]))
            if place is not None:
                seen = self._tokens[place:]  # from there on, over and over
                self._guess = [seen[i % len(seen)] for i in range(min(most, self._length))]
                break
        return list(self._guess)
