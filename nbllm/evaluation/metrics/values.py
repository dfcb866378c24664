"""What metrics of numbers have in common: a predicted and an expected one."""

from __future__ import annotations

import abc
import dataclasses
import math
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from nbllm.core.errors import DataError, UserError
from nbllm.evaluation.columns import Array, Columns, Row
from nbllm.evaluation.metrics.base import PredictionMetric, RatioOfSums
from nbllm.evaluation.metrics.inputs import NUMBER
from nbllm.evaluation.metrics.labels import WeightedMetric, weights_of


class ValueMetric(PredictionMetric):
    """A metric of predicted and expected numbers."""

    inputs = MappingProxyType({"predictions": NUMBER, "references": NUMBER})
    columns = ("predicted", "expected")

    def row(self, prediction: float, reference: float) -> Row:
        """Return the numbers of one example."""
        return {"predicted": prediction, "expected": reference}


class ErrorMetric(WeightedMetric, ValueMetric, RatioOfSums):
    """A mean of how far predicted numbers are from expected ones."""

    better = "lower"
    scale = (0.0, math.inf)
    source = "as in scikit-learn"

    @abc.abstractmethod
    def errors(self, differences: Array) -> Array:
        """Return the error of each difference between a predicted and an expected number: (row)."""

    def terms(self, columns: Columns) -> tuple[Array, Array]:
        """Return the weighted errors and the weights of each example."""
        weights = weights_of(columns, len(columns["predicted"]))
        return weights * self.errors(columns["predicted"] - columns["expected"]), weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorrelationMetric(ValueMetric):
    """A correlation of predicted and expected numbers.

    Args:
        undefined: The figure where one of both does not vary; `None`: not a number, as scipy has it.
    """

    better = "higher"
    scale = (-1.0, 1.0)
    p_key: ClassVar[str] = "p-value"

    undefined: float | None = None

    def results(self, columns: Columns, *, return_pvalue: bool = False) -> dict[str, Any]:
        """Return the correlation.

        Args:
            columns: By name, each (row).
            return_pvalue: Whether the probability of one at least as large without a relation is returned too. Needs
                scipy.
        """
        out: dict[str, Any] = {self.key: self.compute(columns)}
        if return_pvalue:
            out[self.p_key] = self._p_value(columns)
        return out

    def _p_value(self, columns: Columns) -> float:
        try:
            from scipy import stats
        except ImportError:
            raise UserError(
                "The p-value of a correlation needs scipy.", where="return_pvalue", hint="pip install scipy"
            ) from None
        return float(getattr(stats, self.key)(columns["predicted"], columns["expected"]).pvalue)

    def compute(self, columns: Columns) -> float:
        """Return the correlation over all rows."""
        one, two = columns["predicted"], columns["expected"]
        if len(one) < 2:
            raise DataError("A correlation needs at least two examples.", where=self.name)
        found = correlation(self.compared(one), self.compared(two))
        return self.undefined if self.undefined is not None and math.isnan(found) else found

    def compared(self, values: Array) -> Array:
        """Return what is correlated of numbers: (row)."""
        return values


def correlation(one: Array, two: Array) -> float:
    """Return the product-moment correlation of two series; not a number where one does not vary."""
    if (one == one[0]).all() or (two == two[0]).all():  # rounding of the mean may hide it below
        return float("nan")
    one, two = one - one.mean(), two - two.mean()
    scale = float(np.sqrt((one @ one) * (two @ two)))
    return float(np.clip(one @ two / scale, -1, 1)) if scale > 0 else float("nan")
