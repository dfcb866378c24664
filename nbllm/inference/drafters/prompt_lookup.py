"""Draft tokens from what a text has said before: quotations, names, code, lists, loops."""

from __future__ import annotations

_LENGTHS = (3, 2)  # of the endings that are looked up, the surer first
_SHORT, _LONG = 2, 7  # draft tokens at first, and after a draft that was accepted whole
_LONGEST_PAUSE = 32  # tokens


class PromptLookup:
    """Finds where the text's last tokens stood before and proposes what followed them there.

    A rejected draft costs a little, so each one doubles the pause before the next; an accepted one ends it.

    Source: Yang et al. 2023, "Inference with Reference", arXiv:2304.04487; Saxena 2023, "Prompt Lookup Decoding".
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # ending -> the place after its last occurrence
        self._draft: list[int] = []  # what of the last draft is not yet accepted
        self._accepted_some = False
        self._length, self._pause, self._wait = _SHORT, 1, 0

    def propose(self, tokens: list[int], most: int) -> list[int]:
        """Return draft tokens; none where the text's end has no earlier occurrence, or after rejected drafts."""
        for token in tokens[len(self._tokens) :]:
            self._add(token)
        self._draft, self._accepted_some = [], False
        if self._wait > 0:
            self._wait -= 1
            return []
        for length in _LENGTHS:
            place = self._next.get(tuple(self._tokens[-length:]))
            if place is not None:
                followed = self._tokens[place:]  # repeated where the draft is longer
                self._draft = [followed[i % len(followed)] for i in range(min(most, self._length))]
                break
        return list(self._draft)

    def _add(self, token: int) -> None:
        """Take the text's next token, and see whether the draft had it."""
        place = len(self._tokens)
        for length in _LENGTHS:
            if place >= length:
                self._next[tuple(self._tokens[place - length :])] = place
        self._tokens.append(token)
        if not self._draft:
            return
        if self._draft.pop(0) == token:
            self._accepted_some, self._pause = True, 1
            if not self._draft:
                self._length = _LONG
            return
        if not self._accepted_some:
            self._pause = self._wait = min(2 * self._pause, _LONGEST_PAUSE)
        self._draft, self._length = [], _SHORT
