"""Perplexity per word, where each example is one word however many tokens it has."""

from __future__ import annotations

import math

import numpy as np

from nbllm.evaluation.columns import Array, Columns
from nbllm.evaluation.metrics.base import METRICS, RatioOfSums


@METRICS.register("word_perplexity")
class WordPerplexity(RatioOfSums):
    """The exponential of the mean negative log-likelihood of a word; comparable across tokenizers.

    Source: Paperno et al. 2016, arXiv:1606.06031.
    """

    name = "word_perplexity"
    label = "perplexity per word"
    note = "lower is better"
    better = "lower"
    scale = (1.0, math.inf)
    columns = ("nats",)

    def terms(self, columns: Columns) -> tuple[Array, Array]:
        """Return the nats of each word, and one for each."""
        return columns["nats"], np.ones(len(columns["nats"]))

    def finish(self, ratio: Array) -> Array:
        """Return the perplexity of nats per word."""
        return np.exp(ratio)
