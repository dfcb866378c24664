"""Pearson's correlation of predicted and expected numbers."""

from __future__ import annotations

import dataclasses

from nbllm.evaluation.metrics.base import METRICS
from nbllm.evaluation.metrics.values import CorrelationMetric


@METRICS.register("pearsonr")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pearson(CorrelationMetric):
    """How closely predicted numbers are a linear function of expected ones.

    Source: Pearson 1895, "Note on Regression and Inheritance in the Case of Two Parents".
    """

    name = key = module = "pearsonr"
    label = "Pearson correlation"
    note = "1 where one is a rising linear function of the other"
    source = "Pearson 1895"
