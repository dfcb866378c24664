"""Bytes per token: how much text one token stands for."""

from __future__ import annotations

from nbllm.evaluation.likelihood import Likelihoods
from nbllm.evaluation.metrics.base import METRICS, RatioMetric
from nbllm.evaluation.statistics import Array


def _terms(results: Likelihoods) -> tuple[Array, Array]:
    return results.num_bytes, results.num_tokens


METRICS.register("bytes_per_token")(
    RatioMetric(
        label="bytes per token",
        unit="bytes",
        note="of the tokenizer, not the model",
        terms=_terms,
        of_model=False,
    )
)
