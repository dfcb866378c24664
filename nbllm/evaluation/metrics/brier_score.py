"""The Brier score: the squared distance of predicted probabilities from what happened."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import MappingProxyType

from nbllm.core.errors import DataError
from nbllm.evaluation.columns import Array, Columns, Row
from nbllm.evaluation.metrics.base import METRICS, RatioOfSums
from nbllm.evaluation.metrics.inputs import LABEL, PROBABILITIES
from nbllm.evaluation.metrics.labels import WeightedMetric, weights_of


@METRICS.register("brier_score")
@dataclasses.dataclass(frozen=True, kw_only=True)
class BrierScore(WeightedMetric, RatioOfSums):
    """The mean squared distance of probabilities from what happened.

    Predictions are the probability of the positive class, with its label as reference or another; or a list with the
    probability of every class, with the index of the right one as reference. Then the squares are summed over classes,
    and the score is 0 to 2.

    Args:
        pos_label: The positive class.

    Source: Brier 1950, "Verification of Forecasts Expressed in Terms of Probability".
    """

    name = key = module = "brier_score"
    label = "Brier score"
    note = "mean squared distance of probabilities from what happened"
    better = "lower"
    scale = (0.0, 2.0)
    columns = ("squared_distance",)
    inputs = MappingProxyType({"predictions": PROBABILITIES, "references": LABEL})
    source = "Brier 1950"

    pos_label: int | str = 1

    def row(self, prediction: float | Sequence[float], reference: int | str) -> Row:
        """Return the squared distance of one example."""
        if isinstance(prediction, float):
            return {"squared_distance": (prediction - (reference == self.pos_label)) ** 2}
        if not isinstance(reference, int) or not 0 <= reference < len(prediction):
            raise DataError(
                f"The reference {reference!r} is no index of the {len(prediction)} probabilities of its prediction."
            )
        distances = ((each - (index == reference)) ** 2 for index, each in enumerate(prediction))
        return {"squared_distance": sum(distances)}

    def terms(self, columns: Columns) -> tuple[Array, Array]:
        """Return the weighted distances and the weights of each example."""
        weights = weights_of(columns, len(columns["squared_distance"]))
        return weights * columns["squared_distance"], weights
