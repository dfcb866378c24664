"""Words of text in any script, for metrics that compare words."""

from __future__ import annotations

import regex

# Written without spaces between words.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_WORD = regex.compile(
    rf"(?V1)[[\p{{L}}\p{{N}}]&&[{_UNSPACED}]]\p{{M}}*|[[\p{{L}}\p{{N}}]--[{_UNSPACED}]][[\p{{L}}\p{{N}}\p{{M}}]--[{_UNSPACED}]]*"
)
_LETTER = regex.compile(r"\p{L}")


def unicode_words(text: str) -> list[str]:
    """Return the words of a text in lower case: runs of letters, marks and digits of any script.

    A character of a script without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan) is a
    word, with the marks that belong to it.

    >>> unicode_words("Café, हिन्दी: 東京タワー 2")
    ['café', 'हिन्दी', '東', '京', 'タ', 'ワ', 'ー', '2']
    """
    found: list[str] = _WORD.findall(text.lower())
    return found


def has_letters(text: str) -> bool:
    """Return whether there is a letter of any script."""
    return _LETTER.search(text) is not None
