"""Span corruption: predict the spans of tokens that were replaced by sentinels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from nbllm.core.errors import UserError
from nbllm.objectives.base import OBJECTIVES, Batch
from nbllm.objectives.spans import Bools, Counts, Ints, noise_counts, noise_mask
from nbllm.objectives.special_tokens import SENTINELS, sentinel_ids
from nbllm.objectives.text_to_text import TextToText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Corruption(NamedTuple):
    """How much of a text is noise, and in how long spans.

    Attributes:
        rate: The share of tokens that are noise.
        mean_length: Of a span of noise; `None`: there is one span, at the end of the text.
    """

    rate: float
    mean_length: float | None

    def counts(self, length: int) -> Counts:
        """Return the tokens that are noise of so many, and their spans."""
        return noise_counts(length, self.rate, self.mean_length)

    def lengths(self, length: int) -> tuple[int, int]:
        """Return the tokens of inputs and targets, sentinels and end tokens included, of a text of so many."""
        noise, spans = self.counts(length)
        return length - noise + spans + 1, noise + spans + 1

    def longest(self, num_inputs: int) -> int:
        """Return the tokens of the longest text whose inputs are at most so many; 0: there is none.

        Source: `random_spans_helper` of the published code of T5.
        """
        length = max(0, num_inputs - 1)  # fits: there is a sentinel for each span, which has a token at least
        while self.lengths(length + 1)[0] <= num_inputs:
            length += 1
        return length


@OBJECTIVES.register("span_corruption")
class SpanCorruption(TextToText):
    """15% of the tokens, in spans of 3 on average, are to be predicted; a sentinel stands in the place of each span.

    Read is the text with <extra_id_0>, <extra_id_1>, ... in place of its spans, and predicted are the spans, each after
    its sentinel; both end with the end token. Inputs and targets have the same lengths in every batch; the sequence
    length is that of the inputs, of 512 tokens for a text of 568 and targets of 114.

    Source: Raffel et al. 2020, arXiv:1910.10683, sections 3.1.4 and 3.3.4, and the published code
        (google-research/text-to-text-transfer-transformer, `span_corruption`).
    """

    special_tokens = tuple((name,) for name in SENTINELS)
    corruption: ClassVar = Corruption(0.15, 3.0)
    sentinels: Ints  # their ids, in the order in which they stand in a text

    @classmethod
    def for_tokenizer(cls, tokenizer: PreTrainedTokenizerFast) -> Self:
        """Return the objective for text of this tokenizer.

        Raises:
            UserError: It has no sentinels, or no end token.
        """
        made = super().for_tokenizer(tokenizer)
        made.sentinels = np.array(sentinel_ids(tokenizer, "span_corruption"))
        return made

    def window_length(self, sequence_length: int) -> int:
        """Return how many tokens of the text make inputs of at most `sequence_length` tokens."""
        length = self.corruption.longest(sequence_length)
        check_sentinels(self.sentinels, [self.corruption], length, sequence_length)
        return length

    def num_positions(self, sequence_length: int) -> int:
        """Return the tokens of inputs and targets together, but the last, which nothing follows."""
        return sum(self.corruption.lengths(self.corruption.longest(sequence_length))) - 1

    def batch(self, windows: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Return "inputs", "decoder_inputs" and "targets"; each has the same length in every batch."""
        return self.pair(*corrupted(windows, self.corruption, self.sentinels, self.end, rng))


def check_sentinels(
    sentinels: Ints, corruptions: Iterable[Corruption], length: int, sequence_length: int
) -> None:
    """Check that some text fits into a sequence, and that there is a sentinel for each span of it.

    Raises:
        UserError: There is not.
    """
    if not length:
        raise UserError(
            f"sequence_length is {sequence_length}, too short for any text.", hint="Use a longer one."
        )
    spans = max(corruption.counts(length).spans for corruption in corruptions)
    if spans > len(sentinels):
        raise UserError(
            f"A sequence of {sequence_length} tokens has {spans} spans; the tokenizer has only {len(sentinels)} "
            "sentinels <extra_id_0>, <extra_id_1>, ...",
            hint="Use a shorter sequence_length.",
        )


def corrupted(
    windows: Ints, corruption: Corruption, sentinels: Ints, end: int, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Return inputs and targets of some windows, (row, position) and (row, target)."""
    noise = noise_mask(windows.shape, corruption.counts(windows.shape[1]), rng)
    first, second = (_spans_replaced(windows, spans, sentinels) for spans in (noise, ~noise))
    if not noise.any():  # a single token
        second = second[:, :0]
    ends = np.full((len(windows), 1), end)
    return np.hstack((first, ends)), np.hstack((second, ends))


def _spans_replaced(windows: Ints, spans: Bools, sentinels: Ints) -> Ints:
    """Return the windows with a sentinel in place of each span, of which each row has as many."""
    begins = spans.copy()
    begins[:, 1:] &= ~spans[:, :-1]
    number = np.maximum(begins.cumsum(1) - 1, 0)
    return np.where(begins, sentinels[number], windows)[~spans | begins].reshape(len(windows), -1)


show = SpanCorruption.show
