"""Perplexity: among how many equally likely tokens the model seems to choose."""

from __future__ import annotations

import math

import numpy as np

from nbllm.evaluation.columns import Array, Columns
from nbllm.evaluation.metrics.base import METRICS, RatioOfSums


@METRICS.register("perplexity")
class Perplexity(RatioOfSums):
    """The exponential of the mean negative log-likelihood of a token.

    Source: Jelinek et al. 1977, Perplexity, a measure of the difficulty of speech recognition tasks.
    """

    name = "perplexity"
    label = "perplexity per token"
    note = "comparable only between models of one tokenizer; lower is better"
    better = "lower"
    scale = (1.0, math.inf)
    source = "Jelinek et al. 1977"
    columns = ("nats", "num_tokens")
    comparable_by = ("num_tokens",)

    def terms(self, columns: Columns) -> tuple[Array, Array]:
        """Return the nats and the tokens of each document."""
        return columns["nats"], columns["num_tokens"]

    def finish(self, ratio: Array) -> Array:
        """Return the perplexity of nats per token."""
        return np.exp(ratio)
