"""Spans of tokens drawn for whole batches at once, as the denoising objectives need them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Counts(NamedTuple):
    """How much of a sequence is noise, the same in every sequence of its length."""

    noise: int
    spans: int


def noise_counts(length: int, rate: float, mean_length: float | None) -> Counts:
    """Return how many tokens of a sequence are noise, and in how many spans.

    Args:
        length: Tokens of the sequence.
        rate: The share that is noise.
        mean_length: Of a span; `None`: there is one span.

    Source: `random_spans_noise_mask` of the published code of T5 (google-research/text-to-text-transfer-transformer).
    """
    if length < 2:
        return Counts(0, 0)
    noise = min(max(round(length * rate), 1), length - 1)
    spans = 1 if mean_length is None else max(round(noise / mean_length), 1)
    return Counts(noise, min(spans, noise, length - noise))


def noise_mask(shape: tuple[int, ...], counts: Counts, rng: np.random.Generator) -> Bools:
    """Return which tokens are noise, in an array of a shape (row, length): spans of other tokens and of noise in turn.

    Both are divided into spans at random, every division as likely as any other; so all rows have as much noise, and
    as many spans. The first span is of other tokens, the last of noise.

    Source: As `noise_counts`.
    """
    rows, length = shape
    if not counts.spans:
        return np.zeros(shape, bool)
    parts = (_divided(rows, total, counts.spans, rng) for total in (length - counts.noise, counts.noise))
    lengths = np.stack(list(parts), axis=2).reshape(rows, -1)
    begins = np.zeros((rows, length), np.int64)
    np.put_along_axis(begins, lengths.cumsum(1)[:, :-1], 1, axis=1)
    mask: Bools = begins.cumsum(1) % 2 == 1
    return mask


def _divided(rows: int, total: int, parts: int, rng: np.random.Generator) -> Ints:
    """Return the lengths, (row, part), of `total` tokens divided at random into parts of at least one."""
    begins = rng.permuted(np.tile(np.arange(total - 1) < parts - 1, (rows, 1)), axis=1)
    ends = np.nonzero(begins)[1].reshape(rows, parts - 1) + 1
    return np.diff(ends, axis=1, prepend=0, append=total)


class Spans(NamedTuple):
    """Spans that were drawn in each sequence; between two of them, other tokens are kept.

    As many tokens are kept in each row. Before each, and after the last, is a slot, in which a span may stand.

    Attributes:
        kept: (row, kept), the places of the tokens that are in no span.
        drawn: (row, slot), where a span is.
        starts: (row, slot), where it begins.
        lengths: (row, slot), its tokens; 0 also where there is no span.
    """

    kept: Ints
    drawn: Bools
    starts: Ints
    lengths: Ints

    def replaced_by(self, token: int, windows: Ints) -> tuple[Ints, Bools]:
        """Return the windows with a token in place of each span, and where there is a token: (row, column) both."""
        rows, kept = self.kept.shape
        values = np.full((rows, 2 * kept + 1), token)
        values[:, 1::2] = np.take_along_axis(windows, self.kept, axis=1)
        there = np.ones(values.shape, bool)
        there[:, ::2] = self.drawn
        return values, there


def poisson_spans(
    shape: tuple[int, ...], rng: np.random.Generator, *, rate: float, mean: float, least: int
) -> Spans:
    """Draw spans with lengths from a Poisson distribution until a share of the tokens is in one.

    The last one is cut so that the share is exact. Where the spans lie is as likely as anywhere else.

    Args:
        shape: Sequences and tokens of each.
        rng: The source of randomness.
        rate: The share of tokens in spans; at least one token is.
        mean: Of the Poisson distribution.
        least: The shortest span, 0 or 1; with 1, the distribution is that of the lengths that are not 0.
    """
    rows, length = shape
    noise = max(1, round(length * rate))
    drawn = _poisson(rng, mean, least, (rows, most_spans(noise, mean)))
    ends = np.minimum(drawn.cumsum(1), noise)
    ends[:, -1] = noise  # of the most spans that there can be, the last takes what is left
    counts = (ends < noise).sum(1, keepdims=True) + 1
    lengths = np.diff(ends, axis=1, prepend=0)
    slots = length - noise + 1
    rank = rng.random((rows, slots)).argsort(1).argsort(1)
    chosen = rank < counts
    number = np.maximum(chosen.cumsum(1) - 1, 0)
    in_slots = np.where(chosen, np.take_along_axis(lengths, number, axis=1), 0)
    before = np.arange(slots) + in_slots.cumsum(1)
    return Spans(before[:, :-1], chosen, before - in_slots, in_slots)


def most_spans(noise: int, mean: float) -> int:
    """Return the most spans of `poisson_spans`: beyond 4 standard deviations above their usual number, at least 1."""
    usual = noise / mean
    return max(1, min(noise, math.ceil(usual + 2.5 * math.sqrt(usual))))


def _poisson(rng: np.random.Generator, mean: float, least: int, shape: tuple[int, int]) -> Ints:
    if not least:
        return rng.poisson(mean, shape)
    longest = math.ceil(mean + 12 * math.sqrt(mean) + 12)  # nobody will see a longer one
    weights = np.array([mean**k / math.factorial(k) for k in range(1, longest)])
    return rng.choice(np.arange(1, longest), size=shape, p=weights / weights.sum())


def compacted(values: Ints, there: Bools, fill: int) -> tuple[Ints, Bools]:
    """Return the values of each row that are there, moved to its beginning and padded, and which are no padding."""
    counts = there.sum(1)
    order = np.argsort(~there, axis=1, kind="stable")[:, : counts.max(initial=0)]
    real = np.arange(order.shape[1]) < counts[:, None]
    return np.where(real, np.take_along_axis(values, order, axis=1), fill), real
