"""Bits per byte: how short a model makes text, whatever its tokenizer."""

from __future__ import annotations

import math

from nbllm.evaluation.likelihood import Likelihoods
from nbllm.evaluation.metrics.base import METRICS, RatioMetric
from nbllm.evaluation.statistics import Array


def _terms(results: Likelihoods) -> tuple[Array, Array]:
    return results.nats / math.log(2), results.num_bytes


# Source: Gao et al. 2021, The Pile, arXiv:2101.00027, section 3.1.
METRICS.register("bits_per_byte")(
    RatioMetric(
        label="bits per byte",
        unit="bits",
        note="bits that the model needs for a byte of text; lower is better, 8 is no compression",
        terms=_terms,
    )
)
