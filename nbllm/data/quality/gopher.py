"""Gopher's rules: which documents are kept, and how much one may repeat itself.

Words are runs of characters without a space. Scripts that write no spaces between words (Chinese, Japanese, Thai, Lao,
Khmer, Burmese, Tibetan, Javanese, ...) have no words that can be told apart without a dictionary: there each letter,
with its marks and the punctuation behind it, counts as a word. The mean word length is that of the words of other
scripts alone, and not defined (so never a reason to drop) where a document has none. The stop words are English, as
published: for other languages name others, or none (`min_stop_words=0`).

Characters are counted without combining marks, so that composed and decomposed text measure the same. Bytes that are
not UTF-8 count as U+FFFD.

Source: Rae et al. 2021, "Scaling language models", arXiv:2112.11446, appendix A.1.1 and table A1. The paper leaves open
what a word is and what its shares are shares of. `published="code"` measures as datatrove's GopherQualityFilter and
GopherRepetitionFilter do (version 0.10), on the words above.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import UserError
from nbllm.data.arrow_text import Texts
from nbllm.data.pipeline.step import STEPS, Filter, Rule
from nbllm.data.quality.characters import character_table
from nbllm.data.quality.limits import MOST_UNITS
from nbllm.data.quality.reasons import Explained

Published = Literal["paper", "code"]
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
MOST_STOP_WORDS = 64


def check_published(published: str) -> None:
    """Raise `UserError` unless `published` is "paper" or "code"."""
    if published not in ("paper", "code"):
        raise UserError(f"published is {published!r}; it must be 'paper' or 'code'.")


def ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return part / whole of each document; 0 where there is nothing."""
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)


@STEPS.register("gopher")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Gopher(Explained, Filter):
    """Keeps documents by number and length of words, symbols, bullets, ellipses, letters and stop words.

    The code differs from the paper: words of punctuation and symbols alone do not count as words and in the mean
    length (but in the shares), whose unit is code points; shares of lines are of all lines, blank ones too. Its mean
    word length is of the words of all scripts.

    Attributes:
        min_words: Words at least.
        max_words: Words at most.
        min_word_length: Characters in a word, on average, at least.
        max_word_length: Characters in a word, on average, at most.
        max_hashes: "#" per word, at most.
        max_ellipses: "..." and "…" per word, at most.
        max_bullet_lines: Share of lines that begin with "•" or "-", at most.
        max_ellipsis_lines: Share of lines that end in an ellipsis, at most.
        min_letter_words: Share of words with a letter, at least.
        min_stop_words: How many of the stop words occur, at least.
        stop_words: Up to 64; upper and lower case are not the same.
        published: "paper" or "code".
    """

    min_words: int = 50
    max_words: int = 100_000
    min_word_length: float = 3
    max_word_length: float = 10
    max_hashes: float = 0.1
    max_ellipses: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_letter_words: float = 0.8
    min_stop_words: int = 2
    stop_words: tuple[str, ...] = STOP_WORDS
    published: Published = "paper"

    def __post_init__(self) -> None:
        check_published(self.published)
        if len(self.stop_words) > MOST_STOP_WORDS:
            raise UserError(
                f"There are {len(self.stop_words)} stop words; at most {MOST_STOP_WORDS} are counted."
            )
        for word in self.stop_words:
            if word.split() != [word]:
                raise UserError(f"The stop word {word!r} is not one word.")

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The published order."""
        return (
            Rule("words, at least", "gopher/words", "at least", self.min_words, "words"),
            Rule("words, at most", "gopher/words", "at most", self.max_words, "words"),
            Rule(
                "mean word length, at least",
                "gopher/mean_word_length",
                "at least",
                self.min_word_length,
                "characters",
            ),
            Rule(
                "mean word length, at most",
                "gopher/mean_word_length",
                "at most",
                self.max_word_length,
                "characters",
            ),
            Rule("hashes per word, at most", "gopher/hashes_per_word", "at most", self.max_hashes),
            Rule("ellipses per word, at most", "gopher/ellipses_per_word", "at most", self.max_ellipses),
            Rule("bullet lines, at most", "gopher/bullet_lines", "at most", self.max_bullet_lines),
            Rule("ellipsis lines, at most", "gopher/ellipsis_lines", "at most", self.max_ellipsis_lines),
            Rule("words with a letter, at least", "gopher/letter_words", "at least", self.min_letter_words),
            Rule("stop words, at least", "gopher/stop_words", "at least", self.min_stop_words, "words"),
        )

    def signals(self, texts: Texts) -> dict[str, NDArray[Any]]:
        """Return what the rules read, one value a document; of nothing, a share is 0."""
        from nbllm.data.kernels import gopher as kernels

        counts = np.zeros((texts.num_documents, len(kernels.COUNTS)), np.int64)
        kernels.count_documents(texts, character_table(), word_hashes(self.stop_words), counts)
        count = dict(zip(kernels.COUNTS, counts.T, strict=True))
        as_code = self.published == "code"
        if as_code:
            words, lines = count["plain_words"], count["lines"]
            mean = ratio(count["plain_word_points"], words)
        else:
            words, lines = count["words"], count["filled_lines"]
            mean = ratio(count["spaced_word_length"], count["spaced_words"])
            mean[(words > 0) & (count["spaced_words"] == 0)] = np.nan
        return {
            "gopher/words": words.copy(),
            "gopher/mean_word_length": mean,
            "gopher/hashes_per_word": ratio(count["hashes"], count["words"]),
            "gopher/ellipses_per_word": ratio(count["ellipses"], count["words"]),
            "gopher/bullet_lines": ratio(count["bullet_lines"], lines),
            "gopher/ellipsis_lines": ratio(count["ellipsis_lines"], lines),
            "gopher/letter_words": ratio(count["letter_words"], count["words"]),
            "gopher/stop_words": count["stop_words"].copy(),
        }


def word_hashes(words: tuple[str, ...]) -> NDArray[np.uint64]:
    """Return the hash of each word, as the kernels have it."""
    from nbllm.data.kernels.utf8 import new_words, read_words

    workspace = new_words(MOST_STOP_WORDS)
    text = np.frombuffer(" ".join(words).encode(), np.uint8)
    count, _ = read_words(text, 0, text.size, character_table(), workspace)
    return workspace.hashes[:count].copy()


@STEPS.register("gopher-repetition")
@dataclasses.dataclass(frozen=True, kw_only=True)
class GopherRepetition(Explained, Filter):
    """Drops documents that repeat lines, paragraphs or n-grams of words: table A1.

    The code differs from the paper, which speaks of the characters "contained within" repeated text: its shares are of
    all code points of a document; the occurrences of the most frequent n-gram may overlap and count twice, so that a
    share can be above 1, and an n-gram that occurs once is the most frequent one where none is repeated; text behind a
    repeated 5- to 10-gram is looked at again only from its end; lines and paragraphs are compared with the space at
    their ends, and the empty string before or behind a line feed is a line.

    The first 2^20 words and lines of a document are looked at; equality is that of 64-bit hashes.

    Attributes:
        max_duplicate_lines: Share of lines that repeat an earlier one.
        max_duplicate_paragraphs: Share of paragraphs (what blank lines part) that repeat an earlier one.
        max_duplicate_line_characters: Share of characters in those lines.
        max_duplicate_paragraph_characters: Share of characters in those paragraphs.
        max_top_ngrams: Shares of characters in the most frequent 2-, 3- and 4-gram.
        max_duplicate_ngrams: Shares of characters in repeated 5- to 10-grams, each character counted once.
        published: "paper" or "code".
    """

    max_duplicate_lines: float = 0.3
    max_duplicate_paragraphs: float = 0.3
    max_duplicate_line_characters: float = 0.2
    max_duplicate_paragraph_characters: float = 0.2
    max_top_ngrams: tuple[float, float, float] = (0.2, 0.18, 0.16)
    max_duplicate_ngrams: tuple[float, float, float, float, float, float] = (
        0.15,
        0.14,
        0.13,
        0.12,
        0.11,
        0.1,
    )
    published: Published = "paper"

    def __post_init__(self) -> None:
        check_published(self.published)
        if len(self.max_top_ngrams) != 3 or len(self.max_duplicate_ngrams) != 6:
            raise UserError(
                "There are thresholds for 3 most frequent n-grams (2 to 4) and 6 repeated ones (5 to 10).",
                where=f"max_top_ngrams={self.max_top_ngrams}, max_duplicate_ngrams={self.max_duplicate_ngrams}",
            )

    @property
    def rules(self) -> tuple[Rule, ...]:
        """In the order of table A1."""
        from nbllm.data.kernels.repetition import SHARES

        thresholds = (
            self.max_duplicate_lines,
            self.max_duplicate_paragraphs,
            self.max_duplicate_line_characters,
            self.max_duplicate_paragraph_characters,
            *self.max_top_ngrams,
            *self.max_duplicate_ngrams,
        )
        return tuple(
            Rule(f"{name.replace('_', ' ')}, at most", f"gopher/{name}", "at most", threshold)
            for name, threshold in zip(SHARES, thresholds, strict=True)
        )

    def signals(self, texts: Texts) -> dict[str, NDArray[Any]]:
        """Return the shares of table A1, one value a document; of nothing, a share is 0."""
        from nbllm.data.kernels import repetition as kernels

        shares = np.zeros((texts.num_documents, len(kernels.SHARES)))
        measure = kernels.repetition_as_code if self.published == "code" else kernels.repetition
        measure(texts, character_table(), MOST_UNITS, shares)
        return {f"gopher/{name}": shares[:, column].copy() for column, name in enumerate(kernels.SHARES)}
