"""Words and phrases counted in documents, whatever their case and the punctuation between."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import regex
from numpy.typing import NDArray

from nbllm.core.errors import DataError, UserError
from nbllm.core.io import expand_user, read_regular
from nbllm.data.arrow_text import Texts
from nbllm.data.kernels import utf8
from nbllm.data.overlap import KnownRuns, find_runs, normalized
from nbllm.data.quality.characters import PROPERTIES

_UNSPACED = regex.compile(PROPERTIES[utf8.UNSPACED], regex.V1)
MOST_BYTES = 1 << 26  # of a file of words


class Phrases:
    """Lists of words and phrases, to be counted in texts.

    One of a script with spaces counts where it stands as whole words: "ass" is not in "class". One of a script without
    them counts wherever its characters stand.

    Args:
        lists: Each of words and phrases, which are compared in small letters, without punctuation.
    """

    def __init__(self, lists: Sequence[Iterable[str]]) -> None:
        self.num_lists = len(lists)
        self._lists: dict[bytes, set[int]] = {}  # that have a phrase
        hashes: dict[tuple[bool, int], list[NDArray[np.uint64]]] = {}
        for number, phrases in enumerate(lists):
            for phrase in phrases:
                by_word = _UNSPACED.search(phrase) is None
                spelt = normalized(phrase) if by_word else normalized(phrase).replace(b" ", b"")
                self._lists.setdefault(spelt, set()).add(number)
                length = len(spelt.split()) if by_word else len(spelt.decode())
                hashes.setdefault((by_word, length), []).append(find_runs(spelt, length, by_word)[1])
        self._known = [
            KnownRuns(length, by_word, np.concatenate(found)) for (by_word, length), found in hashes.items()
        ]

    def find(self, text: bytes) -> NDArray[np.int64]:
        """Return how many words and phrases of each list a normalised text has, (lists,)."""
        counts = np.zeros(self.num_lists, np.int64)
        for known in self._known:
            for start, stop in find_runs(text, known.length, known.by_word, known)[0].tolist():
                run = text[start:stop] if known.by_word else text[start:stop].replace(b" ", b"")
                for number in self._lists.get(run, ()):  # none: another run has the same hash
                    counts[number] += 1
        return counts

    def counts(self, texts: Texts) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return how many of each list documents have, (documents, lists), and how many words, (documents,)."""
        counts = np.zeros((texts.num_documents, self.num_lists), np.int64)
        words = np.zeros(texts.num_documents, np.int64)
        for document in np.flatnonzero(texts.valid).tolist():
            text = normalized(cast("bytes", texts[document]))
            words[document] = text.count(b" ") + bool(text)
            counts[document] = self.find(text)
        return counts, words


def read_phrases(source: str | os.PathLike[str] | Iterable[str]) -> tuple[str, ...]:
    """Return words and phrases: of a file with one a line ("#" begins a comment), or those given.

    Raises:
        DataError: The file cannot be read, or there is no word.
        UserError: Something given is no text.
    """
    if isinstance(source, str | os.PathLike):
        path = expand_user(Path(source))
        try:
            lines = read_regular(path, MOST_BYTES).decode("utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise DataError(
                f"The list of words cannot be read: {error}.",
                where=path,
                hint="It is a text with one a line.",
            ) from error
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    else:
        found = list(source)
    for each in found:
        if not isinstance(each, str):
            raise UserError(f"A list of words holds {type(each).__name__}: {each!r}.")
    kept = tuple(dict.fromkeys(each for each in found if normalized(each)))
    if not kept:
        raise DataError("There is no word in the list of words.")
    return kept
