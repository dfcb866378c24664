"""Perplexity: among how many equally likely tokens the model seems to choose."""

from __future__ import annotations

import numpy as np

from nbllm.evaluation.likelihood import Likelihoods
from nbllm.evaluation.metrics.base import METRICS, RatioMetric
from nbllm.evaluation.statistics import Array


def _terms(results: Likelihoods) -> tuple[Array, Array]:
    return results.nats, results.num_tokens


# Source: Jelinek et al. 1977, Perplexity, a measure of the difficulty of speech recognition tasks.
METRICS.register("perplexity")(
    RatioMetric(
        label="perplexity per token",
        note="comparable only between models of one tokenizer; lower is better",
        terms=_terms,
        finish=np.exp,
    )
)
