"""Find documents that other documents contain.

A held-out text that stands in the training text as well measures memory, not modelling. Whole documents are
split apart, so it is enough that no document repeats another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

WIDTH = 13  # words; Brown et al. 2020 count a 13-gram as evidence of contamination
SHARE = 0.5


def word_ngrams(text: str, width: int = WIDTH) -> set[tuple[str, ...]]:
    """Return the distinct runs of `width` words of a text; the whole text when it is shorter."""
    words = text.split()
    if len(words) <= width:
        return {tuple(words)}
    return {tuple(words[i : i + width]) for i in range(len(words) - width + 1)}


def repeated(texts: Mapping[str, str], *, share: float = SHARE, width: int = WIDTH) -> dict[str, float]:
    """Return the names of the texts to drop, each with the share of it that the others hold.

    Texts are judged from the shortest on; one is dropped when at least `share` of its word n-grams occur in
    those that are still there. So of two equal texts one stays, and of a chapter and the book that has it,
    the book.

    Args:
        texts: Text by name.
        share: 0 to 1.
        width: Words an n-gram.

    Source: Brown et al. 2020, arXiv:2005.14165, appendix C (13-gram overlap).
    """
    ngrams = {name: word_ngrams(text, width) for name, text in texts.items()}
    holders = Counter(ngram for found in ngrams.values() for ngram in found)
    dropped: dict[str, float] = {}
    for name in sorted(texts, key=lambda name: (len(texts[name]), name)):
        elsewhere = sum(holders[ngram] > 1 for ngram in ngrams[name]) / len(ngrams[name])
        if elsewhere >= share:
            dropped[name] = elsewhere
            holders.subtract(ngrams[name])
    return dropped
