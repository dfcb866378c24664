"""Bands and rows of locality-sensitive hashing: how likely two documents are found, and which settings to take.

Two documents of Jaccard similarity J agree in a band of `rows` MinHash values with probability J^rows, so they are
found by at least one of `bands` with probability 1 - (1 - J^rows)^bands: an S-shaped curve of J.

Source: Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from nbllm.core.chart import Mark, Series, line_chart
from nbllm.core.errors import UserError
from nbllm.core.html import Raw

MOST_PERMUTATIONS = 4096  # of a signature
USUAL_PERMUTATIONS = 128  # that a chosen setting takes at most, where it can
RECALL = 0.95  # of documents just at the threshold, where nothing else is asked for
LEAST_RECALL = 0.5
UNLIKE = 0.1  # documents of this similarity share a few common phrases


@dataclasses.dataclass(frozen=True)
class Bands:
    """How MinHash signatures are cut.

    Attributes:
        bands: Number of bands; two documents that agree in one are compared.
        rows: MinHash values of each.
    """

    bands: int
    rows: int

    @property
    def permutations(self) -> int:
        """Values of a signature."""
        return self.bands * self.rows

    def probability(self, similarity: float) -> float:
        """Return how likely two documents of this Jaccard similarity are to be found."""
        miss = self.bands * math.log1p(-(similarity**self.rows)) if similarity < 1 else -math.inf
        return -math.expm1(miss)

    def chart(self, threshold: float) -> Raw:
        """Return the S-curve as SVG, with the threshold marked."""
        x = np.linspace(0, 1, 101)
        y = [self.probability(float(similarity)) for similarity in x]
        return line_chart(
            [Series(f"{self.bands} bands of {self.rows} rows", x.tolist(), y)],
            x_label="Jaccard similarity",
            y_label="probability of being found",
            marks=[Mark(threshold, f"threshold {threshold:g}: {self.probability(threshold):.3g}")],
            width=520,
            height=240,
        )


def check_bands(bands: Bands, threshold: float) -> Bands:
    """Return `bands` if they are of use at a threshold.

    Raises:
        UserError: They find less than half of the documents at the threshold, or half of all documents that have a
            tenth of their shingles in common, or their signatures are too long.
    """
    if bands.bands < 1 or bands.rows < 1 or bands.permutations > MOST_PERMUTATIONS:
        raise UserError(
            f"{bands.bands} bands of {bands.rows} rows are no setting: both are at least 1, and their product is at "
            f"most {MOST_PERMUTATIONS:,}."
        )
    found, unlike = bands.probability(threshold), bands.probability(UNLIKE)
    better = choose_bands(threshold, RECALL)
    hint = (
        f"The probability of being found is, by similarity: {_curve(bands)}. {better.bands} bands of {better.rows} "
        f"rows find {better.probability(threshold):.1%} at {threshold:g}; recall= chooses the setting."
    )
    if found < LEAST_RECALL:
        raise UserError(
            f"{bands.bands} bands of {bands.rows} rows find only {found:.2g} of the documents whose similarity is "
            f"the threshold, {threshold:g}.",
            hint=hint,
        )
    if unlike > LEAST_RECALL:
        raise UserError(
            f"{bands.bands} bands of {bands.rows} rows compare {unlike:.1%} of the documents whose similarity is only "
            f"{UNLIKE:g}: almost everything with everything.",
            hint=hint,
        )
    return bands


def choose_bands(threshold: float, recall: float) -> Bands:
    """Return the setting that finds documents at the threshold with at least this probability.

    It is the one with the most rows, so with the fewest needless comparisons, among those whose signatures have at most
    128 values; where there is none, the one with the shortest signature.

    Raises:
        UserError: No signature of up to 4,096 values reaches it.
    """
    if not 0 < recall < 1:
        raise UserError(f"recall is {recall!r}; it lies between 0 and 1.")
    settings = []
    for rows in range(1, 65):
        miss = math.log1p(-(threshold**rows)) if threshold < 1 else -math.inf
        settings.append(Bands(max(1, math.ceil(math.log1p(-recall) / miss)), rows))
    useful = [
        s for s in settings if s.permutations <= MOST_PERMUTATIONS and s.probability(UNLIKE) <= LEAST_RECALL
    ]
    if not useful:
        raise UserError(
            f"No setting of up to {MOST_PERMUTATIONS:,} permutations finds {recall:.2%} of the documents of similarity "
            f"{threshold:g}.",
            hint="Ask for a lower recall, or a higher threshold.",
        )
    usual = [setting for setting in useful if setting.permutations <= USUAL_PERMUTATIONS]
    return usual[-1] if usual else min(useful, key=lambda setting: setting.permutations)


def _curve(bands: Bands) -> str:
    return ", ".join(f"{s / 10:g} {bands.probability(s / 10):.2g}" for s in range(1, 10))
