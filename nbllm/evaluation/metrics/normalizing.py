"""How answers are normalized before they are compared: the published rules, by name."""

from __future__ import annotations

import collections
import functools
import re
import string
import sys
import unicodedata
from collections.abc import Callable, Sequence

from nbllm.evaluation.metrics.words import unicode_words

Normalizer = Callable[[str], str]

_ARTICLES = {
    "en": r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "ar": r"\sال^|ال",  # noqa: RUF001
}
# The languages of MLQA and XQuAD; those without spaces between words are compared by character.
_MLQA = ("en", "es", "hi", "vi", "de", "ar", "zh")
_BY_CHARACTER = ("ja", "th", "lo", "km", "my", "bo")
LANGUAGES = (*_MLQA, "el", "ru", "tr", "ro", "ko", *_BY_CHARACTER)


def squad(text: str) -> str:
    """Return a text in lower case without ASCII punctuation and English articles, single-spaced.

    An answer that is nothing else ("The", "A") is erased.

    Source: Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1; its evaluation script.
    """
    lower = "".join(character for character in text.lower() if character not in _ASCII_PUNCTUATION)
    return " ".join(re.sub(_ARTICLES["en"], " ", lower).split())


def squad_nonempty(text: str) -> str:
    """Return a text as `squad` does, but leave out no step that would erase a whole answer.

    >>> squad("A"), squad_nonempty("A"), squad_nonempty("The cat."), squad_nonempty("+")
    ('', 'a', 'cat', '+')
    """
    lower = " ".join(text.lower().split())
    bare = " ".join("".join(c for c in lower if c not in _ASCII_PUNCTUATION).split())
    return squad(text) or bare or lower


def mlqa(text: str, language: str) -> str:
    """Return a text in lower case without punctuation of any script and articles of the language, in words.

    Chinese is cut into characters. So are, beyond the published rule, other languages without spaces between words.

    Source: Lewis et al. 2020, arXiv:1910.07475, section 4.1; its evaluation script.
    """
    bare = "".join(character for character in text.lower() if character not in _punctuation())
    if language in _ARTICLES:
        bare = re.sub(_ARTICLES[language], " ", bare)
    if language == "zh":
        return " ".join(re.sub(r"([\u4e00-\u9fa5])", r" \1 ", bare).split())
    return " ".join(unicode_words(bare) if language in _BY_CHARACTER else bare.split())


_ASCII_PUNCTUATION = frozenset(string.punctuation)


@functools.cache
def _punctuation() -> frozenset[str]:
    """Return the punctuation of all scripts, and the ASCII symbols."""
    every = (chr(i) for i in range(sys.maxunicode) if unicodedata.category(chr(i)).startswith("P"))
    return _ASCII_PUNCTUATION.union(every)


NORMALIZERS: dict[str, Callable[[str, str], str]] = {
    "squad": lambda text, language: squad(text),
    "squad_nonempty": lambda text, language: squad_nonempty(text),
    "mlqa": mlqa,
    "none": lambda text, language: text,
}


def token_f1(prediction: Sequence[str], gold: Sequence[str]) -> float:
    """Return the F1 of the tokens that a prediction shares with a gold answer, each as often as both have it."""
    shared = sum((collections.Counter(prediction) & collections.Counter(gold)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(prediction), shared / len(gold)
    return 2 * precision * recall / (precision + recall)
