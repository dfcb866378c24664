"""Spearman's correlation of the ranks of predicted and expected numbers."""

from __future__ import annotations

import dataclasses

import numpy as np

from nbllm.evaluation.columns import Array
from nbllm.evaluation.metrics.base import METRICS
from nbllm.evaluation.metrics.values import CorrelationMetric


@METRICS.register("spearmanr")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Spearman(CorrelationMetric):
    """How closely the order of predicted numbers is that of expected ones; equal numbers share their mean rank.

    Source: Spearman 1904, "The Proof and Measurement of Association between Two Things".
    """

    name = key = module = "spearmanr"
    label = "Spearman correlation"
    note = "1 where both have the same order"
    source = "Spearman 1904"
    p_key = "spearmanr_pvalue"

    def compared(self, values: Array) -> Array:
        """Return the ranks: (row)."""
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        last = counts.cumsum()
        return (last - (counts - 1) / 2)[place]
