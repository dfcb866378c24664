"""Calibration: whether a model is right as often as it says."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import Any

import numpy as np

from nbllm.core.config import check_choice, check_positive
from nbllm.evaluation.columns import Array, Columns, Row
from nbllm.evaluation.metrics.base import METRICS, FunctionOfSums, PredictionMetric, quotient
from nbllm.evaluation.metrics.inputs import OUTCOME, PROBABILITY


@METRICS.register("expected_calibration_error")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpectedCalibrationError(PredictionMetric, FunctionOfSums):
    """How far confidence is from accuracy, averaged over bins of equal width weighted by their examples.

    Predictions are the probability of what was answered (or, of two classes, of the positive one), references
    whether that was right.

    Args:
        num_bins: Bins between 0 and 1; each holds its lower edge.
        norm: "l1", the mean over bins, or "max", the largest.

    Source: Naeini et al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning"; Guo et al. 2017,
    arXiv:1706.04599, eq. 3 and 5.
    """

    name = key = module = "expected_calibration_error"
    label = "calibration error"
    note = "mean distance of confidence from accuracy, by bins"
    better = "lower"
    scale = (0.0, 1.0)
    columns = ("confidence", "correct")
    inputs = MappingProxyType({"predictions": PROBABILITY, "references": OUTCOME})
    source = "Naeini et al. 2015; Guo et al. 2017, arXiv:1706.04599"

    num_bins: int = 15
    norm: str = "l1"

    def __post_init__(self) -> None:
        """Check the choices."""
        check_positive(self, "num_bins")
        check_choice(self, "norm", ("l1", "max"))

    def row(self, prediction: float, reference: int) -> Row:
        """Return the confidence of an answer, and whether it is right."""
        return {"confidence": prediction, "correct": float(reference)}

    @property
    def edges(self) -> Array:
        """Where bins begin and the last one ends: (bin + 1)."""
        return np.linspace(0, 1, self.num_bins + 1)

    def statistics(self, columns: Columns) -> Array:
        """Return what each row adds to its bin: one, its confidence, whether it is right: (row, 3 x bin)."""
        place = np.clip(
            np.searchsorted(self.edges, columns["confidence"], side="right") - 1, 0, self.num_bins - 1
        )
        inside = np.eye(self.num_bins)[place]
        return np.concatenate(
            [inside, inside * columns["confidence"][:, None], inside * columns["correct"][:, None]], axis=1
        )

    def figures(self, sums: Array) -> Array:
        """Return the error of each set of sums."""
        counts, confidence, correct = np.split(sums, 3, axis=1)
        if self.norm == "max":
            gaps: Array = quotient(np.abs(confidence - correct), counts, 0.0).max(axis=1)
            return gaps
        return quotient(np.abs(confidence - correct).sum(axis=1), counts.sum(axis=1))

    def reliability_diagram(self, columns: Columns) -> list[dict[str, float]]:
        """Return of each bin that holds examples its edges, their number, mean confidence and accuracy."""
        counts, confidence, correct = np.split(self.sums(columns), 3)
        edges = self.edges
        return [
            {
                "low": float(edges[i]),
                "high": float(edges[i + 1]),
                "count": int(counts[i]),
                "confidence": float(confidence[i] / counts[i]),
                "accuracy": float(correct[i] / counts[i]),
            }
            for i in np.flatnonzero(counts)
        ]

    def results(self, columns: Columns) -> dict[str, Any]:
        """Return the error, and the points of a reliability diagram."""
        return {self.key: self.compute(columns), "reliability_diagram": self.reliability_diagram(columns)}
