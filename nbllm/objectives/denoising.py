"""BART's denoising: predict a text as it was from one that was masked, cut, reordered or rotated."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from nbllm.objectives.base import OBJECTIVES, Batch
from nbllm.objectives.spans import Bools, Ints, compacted, poisson_spans
from nbllm.objectives.special_tokens import MASK, around, length_within, token_id
from nbllm.objectives.text_to_text import TextToText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@OBJECTIVES.register("denoising")
class Denoising(TextToText):
    """The sentences of a window are shuffled and 30% of its tokens masked in spans; the whole window is predicted.

    This is the mix that BART-large was trained with. A span's length is drawn from a Poisson distribution with mean 3,
    and one mask token stands for all of it; a span of no token inserts one. A sentence ends with a full stop, or where
    a document ends. Read and predicted texts stand between the tokens that the tokenizer puts around a text, and end
    with its end token; the decoder begins with it.

    Subclasses apply one kind of noise each.

    Source: Lewis et al. 2020, arXiv:1910.13461, sections 2.2 and 5.1.
    """

    special_tokens = ((MASK,),)
    rate: ClassVar[float] = 0.3
    mean_length: ClassVar[float] = 3.0
    mask: int
    around: tuple[list[int], list[int]]  # the tokens before and after each text
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    def for_tokenizer(cls, tokenizer: PreTrainedTokenizerFast) -> Self:
        """Return the objective for text of this tokenizer.

        Raises:
            UserError: It has no mask token, or no end token.
        """
        made = super().for_tokenizer(tokenizer)
        made.start = made.end
        made.mask = token_id(tokenizer, "denoising", MASK)
        before, after = around(tokenizer)
        made.around = before, after or [made.end]
        made.tokenizer = tokenizer
        return made

    @functools.cached_property
    def ends_sentence(self) -> Bools:
        """Whether each token ends a sentence: (vocabulary,)."""
        texts = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))])
        ends = np.array([text.rstrip().endswith(".") for text in texts])
        ends[self.end] = True
        return ends

    def window_length(self, sequence_length: int) -> int:
        """Return how many tokens of the text make one sequence."""
        return length_within(self.around, sequence_length)

    def num_positions(self, sequence_length: int) -> int:
        """Return the tokens of both texts, but the last, which nothing follows."""
        return 2 * sequence_length - 1

    def batch(self, windows: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Return "inputs" with their "mask", "decoder_inputs" and "targets"; inputs are padded at the end."""
        values, there = self.noised(windows, rng)
        inputs, real = compacted(*self._framed(values, there), self.start)
        targets, _ = self._framed(windows, np.ones(windows.shape, bool))
        return self.pair(inputs, targets, real)

    def noised(self, windows: Ints, rng: np.random.Generator) -> tuple[Ints, Bools]:
        """Return what is read of some windows, and where there is a token at all: (row, column) both."""
        spans = poisson_spans(windows.shape, rng, rate=self.rate, mean=self.mean_length, least=0)
        return spans.replaced_by(self.mask, self.with_sentences_shuffled(windows, rng))

    def with_sentences_shuffled(self, windows: Ints, rng: np.random.Generator) -> Ints:
        """Return the windows with their sentences in random order."""
        sentence = np.zeros(windows.shape, np.int64)
        sentence[:, 1:] = self.ends_sentence[windows[:, :-1]].cumsum(1)
        keys = np.take_along_axis(rng.random(windows.shape), sentence, axis=1)
        return np.take_along_axis(windows, np.argsort(keys, axis=1, kind="stable"), axis=1)

    def _framed(self, values: Ints, there: Bools) -> tuple[Ints, Bools]:
        before, after = (np.tile(np.array(ids, np.int64), (len(values), 1)) for ids in self.around)
        ends = (len(self.around[0]), len(self.around[1]))
        return np.hstack((before, values, after)), np.pad(there, ((0, 0), ends), constant_values=True)


@OBJECTIVES.register("token_masking")
class TokenMasking(Denoising):
    """`Denoising` of tokens that are masked one by one, each with probability 0.15, as in BERT."""

    rate = 0.15

    def noised(self, windows: Ints, rng: np.random.Generator) -> tuple[Ints, Bools]:
        """Return the windows with some tokens masked."""
        values = np.where(rng.random(windows.shape) < self.rate, self.mask, windows)
        return values, np.ones(windows.shape, bool)


@OBJECTIVES.register("token_deletion")
class TokenDeletion(Denoising):
    """`Denoising` of tokens that are left out, each with probability 0.15; nothing tells where."""

    rate = 0.15

    def noised(self, windows: Ints, rng: np.random.Generator) -> tuple[Ints, Bools]:
        """Return the windows without some tokens."""
        return windows, rng.random(windows.shape) >= self.rate


@OBJECTIVES.register("text_infilling")
class TextInfilling(Denoising):
    """`Denoising` of spans of tokens alone, 30% of them, each span replaced by one mask token."""

    def noised(self, windows: Ints, rng: np.random.Generator) -> tuple[Ints, Bools]:
        """Return the windows with some spans masked."""
        spans = poisson_spans(windows.shape, rng, rate=self.rate, mean=self.mean_length, least=0)
        return spans.replaced_by(self.mask, windows)


@OBJECTIVES.register("sentence_permutation")
class SentencePermutation(Denoising):
    """`Denoising` of sentences in random order."""

    def noised(self, windows: Ints, rng: np.random.Generator) -> tuple[Ints, Bools]:
        """Return the windows with their sentences in random order."""
        return self.with_sentences_shuffled(windows, rng), np.ones(windows.shape, bool)


@OBJECTIVES.register("document_rotation")
class DocumentRotation(Denoising):
    """`Denoising` of a window that begins at a token drawn uniformly, and ends with those before it."""

    def noised(self, windows: Ints, rng: np.random.Generator) -> tuple[Ints, Bools]:
        """Return the windows rotated."""
        length = windows.shape[1]
        places = (np.arange(length) + rng.integers(length, size=(len(windows), 1))) % length
        return np.take_along_axis(windows, places, axis=1), np.ones(windows.shape, bool)


show = Denoising.show
