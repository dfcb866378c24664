"""Where in a text a rule of quality finds what it objects to, for a person who looks at it."""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Iterable, Iterator

from nbllm.data.pipeline.step import Step

Span = tuple[int, int]
"""First character, and the character behind the last one."""

_LINE = re.compile(r"[^\n]+")
_PARAGRAPH = re.compile(r"(?:[^\n]|\n(?!\s*\n))+")
_WORD = re.compile(r"\S+")
_MOST_WORDS = 1000


class Explained(Step):
    """A step whose rules can point at what they object to."""

    def reasons(self, rule: str, text: str) -> list[Span]:
        """Return the spans of a text that a rule counts."""
        signals = {each.name: each.signal for each in self.rules}
        return find_reasons(signals.get(rule, ""), text)


def find_reasons(signal: str, text: str) -> list[Span]:
    """Return the spans of a text that a signal counts, ascending; empty where it is about the whole.

    Args:
        signal: The column: "gopher/bullet_lines".
        text: The text, or its beginning.
    """
    finder = _FINDERS.get(signal.partition("/")[2])
    return [] if finder is None else _joined(finder(text))


def _pattern(pattern: str) -> Callable[[str], Iterator[Span]]:
    compiled = re.compile(pattern, re.MULTILINE)
    return lambda text: (match.span() for match in compiled.finditer(text))


def _repeated(unit: re.Pattern[str]) -> Callable[[str], Iterator[Span]]:
    """Mark the units that occurred before."""

    def find(text: str) -> Iterator[Span]:
        seen: set[str] = set()
        for match in unit.finditer(text):
            said = match[0].strip()
            if said and said in seen:
                yield match.span()
            seen.add(said)

    return find


def _repeated_words(length: int) -> Callable[[str], Iterator[Span]]:
    """Mark every sequence of so many words that occurred before."""

    def find(text: str) -> Iterator[Span]:
        words = list(_WORD.finditer(text))[:_MOST_WORDS]
        seen: set[tuple[str, ...]] = set()
        for at in range(len(words) - length + 1):
            gram = tuple(word[0] for word in words[at : at + length])
            if gram in seen:
                yield words[at].start(), words[at + length - 1].end()
            seen.add(gram)

    return find


def _commonest(length: int) -> Callable[[str], Iterator[Span]]:
    """Mark the most frequent sequence of so many words."""

    def find(text: str) -> Iterator[Span]:
        words = list(_WORD.finditer(text))[:_MOST_WORDS]
        grams = [tuple(word[0] for word in words[at : at + length]) for at in range(len(words) - length + 1)]
        if not grams:
            return
        most, count = collections.Counter(grams).most_common(1)[0]
        if count < 2:
            return
        for at, gram in enumerate(grams):
            if gram == most:
                yield words[at].start(), words[at + length - 1].end()

    return find


def _without_letter(text: str) -> Iterator[Span]:
    return (word.span() for word in _WORD.finditer(text) if not any(each.isalpha() for each in word[0]))


def _short_lines(text: str) -> Iterator[Span]:
    return (line.span() for line in _LINE.finditer(text) if len(line[0].strip()) <= 30)


_FINDERS: dict[str, Callable[[str], Iterable[Span]]] = {
    "hashes_per_word": _pattern("#"),
    "ellipses_per_word": _pattern(r"\.\.\.|…"),
    "bullet_lines": _pattern(r"^[ \t]*[-•‣\u2043*]"),
    "ellipsis_lines": _pattern(r"(?:\.\.\.|…)[ \t]*$"),
    "letter_words": _without_letter,
    "duplicate_lines": _repeated(_LINE),
    "duplicate_line_characters": _repeated(_LINE),
    "duplicate_paragraphs": _repeated(_PARAGRAPH),
    "duplicate_paragraph_characters": _repeated(_PARAGRAPH),
    **{f"top_{length}_gram": _commonest(length) for length in (2, 3, 4)},
    **{f"duplicate_{length}_grams": _repeated_words(length) for length in range(5, 11)},
    "ended_lines": _pattern(r"^[^\n]*[^\s.!?\"'”\u2019…][ \t]*$"),  # those that do not end in punctuation
    "short_lines": _short_lines,
    "duplicate_characters": _repeated(_LINE),
    "curly_brackets": _pattern(r"[{}]"),
    "lorem_ipsum": _pattern(r"(?i:lorem ipsum)"),
}


def _joined(spans: Iterable[Span]) -> list[Span]:
    """Return spans in their order, those that touch or overlap as one."""
    joined: list[Span] = []
    for start, stop in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        elif stop > start:
            joined.append((start, stop))
    return joined
