"""How sure a measured figure is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nbllm.core.seeding import derive
from nbllm.evaluation.config import EvaluationConfig

Array = NDArray[np.float64]
_COUNTS_AT_ONCE = 1 << 22  # numbers, 32 MB


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure and its interval.

    Attributes:
        value: Over all documents.
        interval: Lower and upper bound; `None` for fewer than two documents, which say nothing of their
            spread.
    """

    value: float
    interval: tuple[float, float] | None


def ratio_of_sums(
    numerators: Array,
    denominators: Array,
    config: EvaluationConfig,
    *,
    finish: Callable[[Array], Array] = lambda ratio: ratio,
) -> Estimate:
    """Return `finish(sum of numerators / sum of denominators)` with a percentile bootstrap interval.

    Documents are what is drawn anew, with replacement, since tokens of one document are not independent. The
    ratio of sums, not the mean of ratios, is what a corpus is measured by: a long document counts for more.

    Args:
        numerators: (document).
        denominators: (document), not negative.
        config: Confidence, resamples and seed.
        finish: A monotonic function of the ratio, as exp for a perplexity.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.
    """
    assert numerators.shape == denominators.shape
    total = denominators.sum()
    value = float(finish(np.asarray(numerators.sum() / total if total else np.nan)))
    num_documents = len(numerators)
    if num_documents < 2:
        return Estimate(value, None)
    generator = np.random.default_rng(derive(config.seed, "bootstrap"))
    uniform = np.full(num_documents, 1 / num_documents)
    ratios = []
    left = config.resamples
    while left:
        now = min(left, max(1, _COUNTS_AT_ONCE // num_documents))
        # How often each document is drawn; one product then sums every resample.
        counts = generator.multinomial(num_documents, uniform, size=now).astype(np.float64)
        sums = counts @ np.stack([numerators, denominators], axis=1)
        ratios.append(sums[sums[:, 1] > 0][:, 0] / sums[sums[:, 1] > 0][:, 1])
        left -= now
    tail = (1 - config.confidence) / 2
    low, high = np.quantile(np.concatenate(ratios), [tail, 1 - tail])
    return Estimate(value, (float(finish(np.asarray(low))), float(finish(np.asarray(high)))))
