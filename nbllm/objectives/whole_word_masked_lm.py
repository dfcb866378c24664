"""Masked language modelling of whole words: all tokens of a word are chosen, or none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from nbllm.objectives.base import OBJECTIVES
from nbllm.objectives.masked_lm import MaskedLM

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SPACE, _LETTER, _DIGIT, _OTHER = range(4)


@OBJECTIVES.register("whole_word_masked_lm")
class WholeWordMaskedLM(MaskedLM):
    """`MaskedLM` that chooses words instead of tokens, with the same probability.

    Whether a chosen token is masked, replaced or kept is drawn for each token, as in the published code of BERT. What a
    word is follows from the tokenizer (`Words`).

    Source: Devlin et al., github.com/google-research/bert, "Whole Word Masking" (May 31st, 2019).
    """

    words: Words

    @classmethod
    def for_tokenizer(cls, tokenizer: PreTrainedTokenizerFast) -> Self:
        """Return the objective for text of this tokenizer; errors as in `MaskedLM`."""
        made = super().for_tokenizer(tokenizer)
        made.words = Words(tokenizer)
        return made

    def word_starts(self, windows: NDArray[np.int64]) -> NDArray[np.intp]:
        """Return for each token the place of its word's first token in the window."""
        is_start = self.words.are_starts(windows)
        special = self.is_special[windows]
        is_start |= special
        is_start[:, 1:] |= special[:, :-1]
        places = np.where(is_start, np.arange(windows.shape[1]), 0)
        return np.maximum.accumulate(places, axis=1)


class Words:
    """Which tokens begin a word, by the way in which a tokenizer marks it.

    - WordPiece ("##"): a token without the prefix begins a word.
    - SentencePiece ("▁"): a token with the mark does.
    - Byte-level BPE ("Ġ"), and tokenizers of characters: words are runs of letters, of digits, or of other characters,
      with the space before them, as GPT-2's pre-tokenization cuts them. A character of which a token holds only some
      bytes counts as a letter; an apostrophe ends a word.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        settings = json.loads(tokenizer.backend_tokenizer.to_str())
        tokens = [token or "" for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
        self._first = self._last = np.zeros(len(tokens), dtype=np.int8)
        self._is_space = np.zeros(len(tokens), dtype=bool)
        if settings["model"]["type"] == "WordPiece":
            prefix = settings["model"]["continuing_subword_prefix"]
            self._opens = np.array([not token.startswith(prefix) for token in tokens])
        elif "▁" in json.dumps([settings["decoder"], settings["pre_tokenizer"]], ensure_ascii=False):
            self._opens = np.array([token.startswith("▁") for token in tokens])
        else:
            decoder = tokenizer.backend_tokenizer.decoder
            texts = [decoder.decode([token]) if decoder is not None else token for token in tokens]
            self._first = np.array([_kind(text[:1]) for text in texts], dtype=np.int8)
            self._last = np.array([_kind(text[-1:]) for text in texts], dtype=np.int8)
            self._opens = self._first == _SPACE
            self._is_space = np.array([text == " " for text in texts])

    def are_starts(self, windows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether each token of (batch, window) begins a word; the first of a window does."""
        out, before = self._opens[windows], windows[:, :-1]
        differ = self._first[windows[:, 1:]] != self._last[before]
        out[:, 1:] |= differ & ~self._is_space[before]  # a space of its own belongs to the word after it
        out[:, :1] = True
        return out


def _kind(character: str) -> int:
    if not character or character.isspace():
        return _SPACE
    if character.isalpha() or character == "\ufffd":
        return _LETTER
    return _DIGIT if character.isnumeric() else _OTHER


show = WholeWordMaskedLM.show
