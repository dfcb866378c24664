"""Runs of words and characters that two texts have in common, however they are set.

Two rules of two papers are applied side by side, to texts that are normalised first (compatibility forms, no case, no
punctuation, line breaks like spaces): a run of 13 words in common, and a run of 50 characters (letters and digits).

Source: Brown et al. 2020, "Language Models are Few-Shot Learners", arXiv:2005.14165, appendix C (13 words); OpenAI
2023, "GPT-4 Technical Report", arXiv:2303.08774, appendix C (50 characters, of which three runs an example are looked
for there; here all are).
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

WORDS, CHARACTERS = 13, 50
SHORT_WORDS = 8  # a text of fewer words is found only as a run of characters, or with what stands beside it
_WORD = re.compile(r"[^\W_]+")
_BITS_A_HASH = 16  # of the filter before the search
_RUNS = 256
# Of ASCII: small letters and digits as they are, capitals small, all else a space.
_ASCII = bytes(
    byte if chr(byte) in string.ascii_lowercase + string.digits else (byte + 32 if 65 <= byte <= 90 else 32)
    for byte in range(256)
)


class Hit(NamedTuple):
    """A run that an example and a text have in common.

    Attributes:
        row: Of the example.
        kind: "words" or "characters".
        run: The words, with a space between; or the characters.
        start: The first byte of the run in the normalised text.
        stop: The byte behind its last.
    """

    row: int
    kind: str
    run: str
    start: int
    stop: int


def texts_of(example: Any) -> list[str]:
    """Return all texts of an example, in the order of its fields."""
    if isinstance(example, str):
        return [example]
    if isinstance(example, Mapping):
        return [text for value in example.values() for text in texts_of(value)]
    if isinstance(example, (list, tuple)):
        return [text for value in example for text in texts_of(value)]
    return []


def normalized(text: str | bytes) -> bytes:
    """Return the words of a text in small letters with a space between; of bytes that are no UTF-8 what is."""
    raw = text.encode("utf-8", "replace") if isinstance(text, str) else text
    if raw.isascii():
        return b" ".join(raw.translate(_ASCII).split())
    words = _WORD.findall(unicodedata.normalize("NFKC", raw.decode("utf-8", "replace")).casefold())
    return " ".join(words).encode()


class RunIndex:
    """All runs of some examples, to be found in texts.

    Args:
        examples: The texts of each, as question and choices. Runs may go on from one to the next; a text of 8 to 12
            words of its own is a run, too.
    """

    def __init__(self, examples: Sequence[Sequence[str]]) -> None:
        units: dict[tuple[str, int], list[tuple[int, bytes]]] = {}
        for row, texts in enumerate(examples):
            parts = [normalized(text) for text in texts]
            whole = b" ".join(part for part in parts if part)
            total = len(whole.split())
            for words in [whole, *(p for p in parts if len(p.split()) < min(WORDS, total))]:
                count = len(words.split())
                if count >= SHORT_WORDS:
                    units.setdefault(("words", min(WORDS, count)), []).append((row, words))
            units.setdefault(("characters", CHARACTERS), []).append((row, whole))
        self._kinds = [_Runs(kind, length, found) for (kind, length), found in units.items()]

    def hits(self, text: bytes) -> Iterator[Hit]:
        """Yield the runs that a normalised text has in common with examples, each example once of each kind of run."""
        for runs in self._kinds:
            yield from runs.hits(text)


class _Runs:
    """All runs of one kind and length, sorted by their hashes.

    Args:
        kind: "words" or "characters".
        length: Of a run.
        units: Normalised texts, each with its example.
    """

    def __init__(self, kind: str, length: int, units: Sequence[tuple[int, bytes]]) -> None:
        self.kind, self._units = kind, units
        hashes, places = [np.empty(0, np.uint64)], [np.empty((0, 3), np.int64)]
        for number, (_, text) in enumerate(units):
            runs, found = find_runs(text, length, kind == "words")
            hashes.append(found)
            places.append(np.column_stack([np.full(len(runs), number), runs]))
        together = np.concatenate(hashes)
        order = np.argsort(together, kind="stable")
        self._hashes, self._places = together[order], np.concatenate(places)[order]
        self._known = KnownRuns(length, kind == "words", self._hashes)

    def hits(self, text: bytes) -> Iterator[Hit]:
        """Yield each example once with a run that a text has too; equal hashes are compared as texts."""
        seen: set[int] = set()
        runs, hashes = find_runs(text, self._known.length, self._known.by_word, self._known)
        first = np.searchsorted(self._hashes, hashes)
        last = np.searchsorted(self._hashes, hashes, side="right")
        for (start, stop), low, high in zip(runs.tolist(), first.tolist(), last.tolist(), strict=True):
            run = self._spelt(text[start:stop])
            for number, begin, end in self._places[low:high].tolist():
                row, own = self._units[number]
                if row not in seen and self._spelt(own[begin:end]) == run:
                    seen.add(row)
                    yield Hit(row, self.kind, run.decode(), start, stop)

    def _spelt(self, run: bytes) -> bytes:
        return run if self.kind == "words" else run.replace(b" ", b"")


class KnownRuns:
    """Hashes of runs, to be looked for in texts.

    Args:
        length: Words or characters of a run.
        by_word: Whether runs are of words.
        hashes: Of the runs.
    """

    def __init__(self, length: int, by_word: bool, hashes: NDArray[np.uint64]) -> None:
        from nbllm.data.kernels.overlap import mark_hashes

        self.length, self.by_word = length, by_word
        self.hashes = np.sort(hashes)
        self.marks = np.zeros(1 << (len(hashes) * _BITS_A_HASH // 64).bit_length(), np.uint64)
        mark_hashes(self.hashes, self.marks)


def find_runs(
    text: bytes, length: int, by_word: bool, known: KnownRuns | None = None
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Return where the runs of a normalised text stand, (run, 2) bytes, and their hashes, (run,).

    Args:
        text: Words with a space between.
        length: Words or characters of a run.
        by_word: Whether runs are of words.
        known: Only those whose hashes these are; two runs may have the same.
    """
    from nbllm.data.kernels.overlap import run_hashes

    nothing = np.empty(0, np.uint64)
    if known is not None and not len(known.hashes):
        return np.empty((0, 2), np.int64), nothing
    capacity = _RUNS if known is not None else len(text)
    while True:
        runs, hashes = np.empty((capacity, 2), np.int64), np.empty(capacity, np.uint64)
        count = run_hashes(
            np.frombuffer(text, np.uint8), length, by_word, nothing if known is None else known.hashes,
            nothing if known is None else known.marks, runs, hashes,
        )  # fmt: skip
        if count <= capacity:
            return runs[:count], hashes[:count]
        capacity = count
