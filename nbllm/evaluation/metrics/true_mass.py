"""The share of the probability of all answers that the true ones have together."""

from __future__ import annotations

import numpy as np

from nbllm.evaluation.columns import Array, Columns
from nbllm.evaluation.metrics.base import METRICS, RatioOfSums


@METRICS.register("true_mass")
class TrueMass(RatioOfSums):
    """The mean share of the probability of all answers of a question that its true answers have together.

    Source: Lin, Hilton and Evans 2022, arXiv:2109.07958, section 3.2 ("MC2").
    """

    name = "true_mass"
    label = "probability of the true answers"
    better = "higher"
    scale = (0.0, 1.0)
    columns = ("true_share",)

    def terms(self, columns: Columns) -> tuple[Array, Array]:
        """Return the share of each question, and one for each."""
        return columns["true_share"], np.ones(len(columns["true_share"]))
